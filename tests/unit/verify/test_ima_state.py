from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.verify.ima_state import ExtendRule, ImaState, parse_state

STATE = ImaState(
    algorithm=HashAlgorithm.SHA256,
    rule=ExtendRule.TEMPLATE_HASH,
    reset_count=0xFFFFFFFF,
    boot_aggregate=FileDigest("ima", "sha256", LinuxHash.SHA256, bytes(range(32))),
    count=100_000,
    offset=13_588_771,
    values=((10, b"\x0a" * 32), (11, b"\x0b" * 32)),
)


@pytest.mark.parametrize("rule", ExtendRule)
def test_a_state_survives_its_bytes(rule: ExtendRule) -> None:
    state = replace(STATE, rule=rule)
    assert parse_state(state.encode()) == state
    assert len(state.encode()) < 200


def test_a_boot_aggregate_of_the_original_template() -> None:
    state = replace(STATE, boot_aggregate=FileDigest("ima", "", LinuxHash.SHA1, bytes(20)))
    assert parse_state(state.encode()) == state


def test_states_of_one_boot() -> None:
    assert STATE.same_boot(replace(STATE, count=1, offset=1, values=()))
    for other in (
        replace(STATE, reset_count=1),
        replace(STATE, algorithm=HashAlgorithm.SHA1),
        replace(STATE, rule=ExtendRule.PADDED_SHA1),
        replace(STATE, boot_aggregate=FileDigest("ima", "", LinuxHash.SHA1, bytes(20))),
    ):
        assert not STATE.same_boot(other)


GOOD = STATE.encode()


def changed(**fields: object) -> bytes:
    wire = STATE.to_wire()
    return msgspec.msgpack.encode(msgspec.structs.replace(wire, **fields))


BAD = {
    "nothing": b"",
    "cut": GOOD[:-1],
    "left-over": GOOD + b"\0",
    "tag": GOOD.replace(b"ima-state/1", b"ima-state/2"),
    "utf-8": GOOD.replace(b"template-hash", b"template\xffhash"),
    "number-too-long": GOOD.replace(b"\x0b\xc4 ", b"\xcc\x0b\xc4 "),
    "bank": changed(algorithm=0xFFFF),
    "rule": changed(rule="other"),
    "reset-count": changed(reset_count=1 << 32),
    "reset-count-negative": changed(reset_count=-1),
    "aggregate-name": changed(aggregate_name="sha999"),
    "aggregate-size": changed(aggregate_name="sha512"),
    "count-zero": changed(count=0),
    "offset-negative": changed(offset=-1),
    "no-pcr": changed(values=()),
    "pcr": changed(values=((24, bytes(32)),)),
    "pcr-negative": changed(values=((-1, bytes(32)),)),
    "pcr-size": changed(values=((10, bytes(20)),)),
    "pcr-twice": changed(values=((10, bytes(32)), (10, bytes(32)))),
    "pcrs-descending": changed(values=((11, bytes(32)), (10, bytes(32)))),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_states_are_refused(case: str) -> None:
    assert BAD[case] != GOOD
    with pytest.raises(FormatError):
        parse_state(BAD[case])


@settings(deadline=None)
@given(st.integers(0, len(GOOD)), st.binary(max_size=6))
def test_damage_is_refused_or_encodes_to_itself(at: int, patch: bytes) -> None:
    data = GOOD[:at] + patch + GOOD[at + len(patch) :]
    try:
        state = parse_state(data)
    except FormatError:
        return
    assert state.encode() == data
