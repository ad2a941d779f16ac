"""Measurements that are no tests: what a method costs or gains, on models whose truth is known."""
