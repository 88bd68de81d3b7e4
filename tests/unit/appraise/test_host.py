"""Where a host layer is appraised, and how its trust is kept."""

from __future__ import annotations

from dataclasses import replace

import pytest

from undercroft import wiring
from undercroft.appraise.pipeline import Rulebook
from undercroft.appraise.steady import SteadySession
from undercroft.base import FormatError
from undercroft.formats.evidence import encode_trust, parse_trust
from undercroft.testing.guest import SimulatedGuest


def test_a_steady_session_does_not_pretend_to_look_at_hosts() -> None:
    guest = SimulatedGuest()
    rules = Rulebook.of(guest.references, wiring.shipped_policy("direct-boot"))
    with pytest.raises(ValueError, match="host layer"):
        SteadySession(replace(guest.trust, host_ak_public=b"key"), rules)


def test_trust_in_a_host_is_saved() -> None:
    trust = replace(SimulatedGuest().trust, host_ak_public=b"key", host_counter=7)
    data = encode_trust(trust)
    assert parse_trust(data) == trust
    assert b"host" not in encode_trust(SimulatedGuest().trust)
    with pytest.raises(FormatError, match="not negative"):
        parse_trust(data.replace(b": 7", b": -7"))
