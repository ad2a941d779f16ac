"""Differentially private release of latents: clipping, noise, calibration, accounting."""
