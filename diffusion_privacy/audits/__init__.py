"""Attacks and measurements that test a privacy claim from outside."""
