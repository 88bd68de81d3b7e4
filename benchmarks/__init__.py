"""Benchmarks that anyone can run: ``./dev bench NAME [--json]``."""
