from __future__ import annotations

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.appraise.ima_carried import ImaCarried, ImaTally, parse_carried
from undercroft.appraise.model import Judgement
from undercroft.base import Finding, FormatError, HashAlgorithm, Outcome
from undercroft.formats.ear import Tier, TrustClaim
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.verify.ima_state import ExtendRule, ImaState

STATE = ImaState(
    HashAlgorithm.SHA256,
    ExtendRule.TEMPLATE_HASH,
    7,
    FileDigest("ima", "sha256", LinuxHash.SHA256, bytes(range(32))),
    3,
    300,
    ((10, b"\x0a" * 32),),
)
FINDING = Finding("ima.file", Outcome.FAIL, "bad", {"entry": 2, "expected": [{"a": None}]}, "deb")
CARRIED = ImaCarried(
    STATE,
    b"\x77" * 32,
    ImaTally({"known": 1, "other-content": 1}, {"package": 1}, 1, 0, Tier.CONTRAINDICATED),
    (
        Judgement(FINDING, Tier.CONTRAINDICATED, TrustClaim.EXECUTABLES),
        Judgement(FINDING, None, None),
    ),
)
CLEAN = msgspec.structs.replace(
    CARRIED, tally=ImaTally({"known": 2}, {"package": 2}), deviations=()
)
GOOD = CARRIED.encode()


@pytest.mark.parametrize("carried", [CARRIED, CLEAN], ids=["deviations", "clean"])
def test_it_survives_its_bytes(carried: ImaCarried) -> None:
    assert parse_carried(carried.encode()) == carried


def _recoded(old: bytes, new: bytes) -> bytes:
    assert GOOD.count(old) >= 1
    return GOOD.replace(old, new)


BAD = {
    "nothing": b"",
    "cut": GOOD[:-1],
    "left-over": GOOD + b"\xc0",
    "tag": _recoded(b"undercroft.ima/1", b"undercroft.ima/2"),
    "outcome": _recoded(b"\xa4fail", b"\xa4fall"),
    "tier": _recoded(b"contraindicated", b"contraindicates"),
    "claim": _recoded(b"executables", b"executablez"),
    "state": _recoded(b"template-hash", b"template-hush"),
    "not-canonical": _recoded(b"\xa5entry\x02", b"\xa5entry\xcc\x02"),
    "another-type": msgspec.msgpack.encode(["undercroft.ima/1", 1, 2, 3]),
    "utf-8": _recoded(b"\xa3bad", b"\xa3b\xffd"),
}


@pytest.mark.parametrize("case", BAD)
def test_anything_else_is_refused(case: str) -> None:
    with pytest.raises(FormatError):
        parse_carried(BAD[case])


@settings(deadline=None)
@given(st.integers(0, len(GOOD)), st.binary(max_size=4))
def test_damage_is_refused_or_encodes_to_itself(at: int, patch: bytes) -> None:
    data = GOOD[:at] + patch + GOOD[at + len(patch) :]
    try:
        carried = parse_carried(data)
    except FormatError:
        return
    assert carried.encode() == data
