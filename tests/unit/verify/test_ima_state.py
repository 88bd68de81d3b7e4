from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.verify.ima import ExtendRule
from undercroft.verify.ima_state import RULES, ImaState, parse_state

STATE = ImaState(
    algorithm=HashAlgorithm.SHA256,
    rule="template-hash",
    reset_count=0xFFFFFFFF,
    boot_aggregate=FileDigest("ima", "sha256", LinuxHash.SHA256, bytes(range(32))),
    count=100_000,
    offset=13_588_771,
    values=((10, b"\x0a" * 32), (11, b"\x0b" * 32)),
)


def test_the_rules_have_stable_names() -> None:
    assert tuple(rule.value for rule in ExtendRule) == RULES


@pytest.mark.parametrize("rule", RULES)
def test_a_state_survives_its_bytes(rule: str) -> None:
    state = replace(STATE, rule=rule)
    assert parse_state(state.encode()) == state
    assert len(state.encode()) < 200


def test_a_boot_aggregate_of_the_original_template() -> None:
    state = replace(STATE, boot_aggregate=FileDigest("ima", "", LinuxHash.SHA1, bytes(20)))
    assert parse_state(state.encode()) == state


GOOD = STATE.encode()
BAD = {
    "mark": b"UCIMA\x02" + GOOD[6:],
    "bank": GOOD[:6] + b"\xff\xff" + GOOD[8:],
    "rule": GOOD[:8] + b"\x03" + GOOD[9:],
    "aggregate-name": GOOD.replace(b"sha256", b"sha999"),
    "aggregate-size": GOOD.replace(b"\x06sha256", b"\x06sha512"),
    "pcr": GOOD.replace(b"\x0a" + b"\x0a" * 32, b"\x18" + b"\x0a" * 32),
    "pcr-twice": GOOD.replace(b"\x0b" + b"\x0b" * 32, b"\x0a" + b"\x0b" * 32),
    "count-zero": replace(STATE, count=0).encode(),
    "no-pcr": replace(STATE, values=()).encode(),
    "leftover": GOOD + b"\0",
    "cut": GOOD[:-1],
    "nothing": b"",
}


@pytest.mark.parametrize("case", BAD)
def test_bad_states_are_refused(case: str) -> None:
    with pytest.raises(FormatError):
        parse_state(BAD[case])


@given(st.integers(0, len(GOOD)), st.binary(max_size=6))
def test_damage_is_refused_or_encodes_to_itself(at: int, patch: bytes) -> None:
    data = GOOD[:at] + patch + GOOD[at + len(patch) :]
    try:
        state = parse_state(data)
    except FormatError:
        return
    assert state.encode() == data
