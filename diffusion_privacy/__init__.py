"""Quantify and limit how much a generative model, or a shared data set, gives away about the people in it."""

__version__ = "0.1.0"
