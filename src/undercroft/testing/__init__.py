"""Fakes that sign real structures, for tests and simulations; never used in production."""
