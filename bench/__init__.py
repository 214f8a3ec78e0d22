"""Benchmarks: what is measured, how, and the tables and plots of it."""
