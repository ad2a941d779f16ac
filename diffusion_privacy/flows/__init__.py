"""Conditional invertible networks (CADP)."""
