"""Where text may change, and which bytes may stand there."""

from __future__ import annotations

import pytest

from undercroft.reference.kernel.rules import Rule
from undercroft.securekernel.traps.sites import Site, probe_site

NOP, JUMP = bytes.fromhex("0f1f440000"), bytes.fromhex("e912345678")
LABEL = Site(100, 5, Rule.JUMP_LABEL, (NOP, JUMP))
CALL = Site(200, 5, Rule.STATIC_CALL)


@pytest.mark.parametrize(
    ("found", "flying"),
    [
        ("cc1f440000", True),
        ("cc12345678", True),
        ("cc12340000", True),  # half of the tail
        ("cc99999999", False),  # a tail of nothing that is known
        ("0f1f440000", False),
        ("e912345678", False),
    ],
)
def test_a_patch_in_flight_has_int3_and_a_known_tail(found: str, flying: bool) -> None:
    assert LABEL.may_be_in_flight(bytes.fromhex(found), NOP) is flying


def test_complete_states_are_the_two_of_the_label() -> None:
    assert LABEL.is_complete(NOP)
    assert LABEL.is_complete(JUMP)
    assert not LABEL.is_complete(bytes.fromhex("e912345679"))


def test_without_known_states_the_replay_decides_about_the_tail() -> None:
    assert CALL.may_be_in_flight(bytes.fromhex("cc99999999"), NOP)
    assert not CALL.may_be_in_flight(JUMP, NOP)
    assert not CALL.is_complete(JUMP)


def test_a_probe_is_its_first_byte_and_the_jump_behind_it() -> None:
    assert probe_site(50, [10, 50]) == Site(50, 5, Rule.KPROBE)
    assert probe_site(54, [10, 50]) == Site(50, 5, Rule.KPROBE)
    assert probe_site(55, [10, 50]) is None
    assert probe_site(49, [10, 50]) is None
