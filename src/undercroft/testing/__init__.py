"""Fakes that sign real structures, for tests and simulations; never used in production."""

from undercroft.testing.attester import AkKind, SimulatedAttester, SimulatedQuote

__all__ = ["AkKind", "SimulatedAttester", "SimulatedQuote"]
