"""The checks on a signed Release file; each has a test in which it alone says no."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, VerificationError
from undercroft.packages.release import (
    MAX_SIZE,
    FreshnessRule,
    SignedText,
    VerifiedRelease,
    parse_release,
    verify_release,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "archive"
CONTENT = (VECTORS / "Release").read_bytes()
SIGNED = SignedText(CONTENT, "ab" * 32, ("A" * 40, "B" * 40))
DATE = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
NOW = DATE + dt.timedelta(days=1)
VALID_UNTIL = DATE + dt.timedelta(days=7)
SECOND = dt.timedelta(seconds=1)
LINEAGE = "Debian/Debian/bookworm"


def _verify(
    signed: SignedText = SIGNED,
    *,
    suite: str = "bookworm",
    now: dt.datetime = NOW,
    rule: FreshnessRule | None = None,
    last_seen: dict[str, dt.datetime] | None = None,
) -> VerifiedRelease:
    return verify_release(
        signed, suite=suite, now=now, rule=rule or FreshnessRule(), last_seen=last_seen or {}
    )


def _refused(check: str, **arguments: object) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        _verify(**arguments)  # type: ignore[arg-type]
    assert caught.value.check == check
    return caught.value


def test_fields_are_read() -> None:
    release = parse_release(CONTENT)
    assert (release.origin, release.label, release.suite) == ("Debian", "Debian", "stable")
    assert (release.codename, release.version, release.date) == ("bookworm", "12.1", DATE)
    assert release.valid_until == VALID_UNTIL
    entry = release.indexes["main/binary-amd64/Packages"]
    assert entry.size == (VECTORS / "Packages").stat().st_size
    assert release.lineage == LINEAGE


@pytest.mark.parametrize("suite", ["bookworm", "stable"])
def test_a_good_file_by_codename_or_suite(suite: str) -> None:
    verified = _verify(suite=suite)
    assert (verified.signer, verified.sha256, verified.note) == ("A" * 40, "ab" * 32, "")
    assert verified.origin == "Debian bookworm"


def test_check_1_signature() -> None:
    _refused("archive.signature", signed=SignedText(CONTENT, "", ()))


def test_check_2_suite() -> None:
    _refused("archive.suite", suite="bookworm-security")


def test_check_3_date() -> None:
    early = DATE - dt.timedelta(seconds=11)
    _refused("archive.date", now=early)
    assert _verify(now=DATE - dt.timedelta(seconds=10))
    assert _verify(now=early, rule=FreshnessRule(check_date=False))


def test_check_4_valid_until() -> None:
    assert _verify(now=VALID_UNTIL).note == ""
    _refused("archive.valid-until", now=VALID_UNTIL + SECOND)
    accepted = _verify(now=VALID_UNTIL + SECOND, rule=FreshnessRule(check_valid_until=False))
    assert accepted.note.startswith("expired 2026-01-09")


def test_check_5_rollback() -> None:
    assert _verify(last_seen={LINEAGE: DATE})
    assert _verify(last_seen={"Debian/Debian/trixie": NOW})
    _refused("archive.rollback", last_seen={LINEAGE: DATE + SECOND})


def test_no_valid_until_never_expires() -> None:
    content = b"\n".join(line for line in CONTENT.split(b"\n") if b"Valid-Until" not in line)
    assert _verify(SignedText(content, "", ("A" * 40,)), now=DATE + dt.timedelta(days=4000))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"SHA256:", b"SHA512:"),
        (b"Origin: Debian\n", b""),
        (b"Codename: bookworm\n", b"Codename:\n"),
        (b"Codename: bookworm", b"Codename: bookworm\nCodename: trixie"),
        (b"Date: Fri", b"Date: When"),
        (b"03:04:05 UTC\nValid", b"03:04:05 +0200\nValid"),
        (b"03:04:05 UTC\nValid", b"99:04:05 UTC\nValid"),
        (b"main/binary-amd64/Packages", b""),
        (b" main/binary-amd64/Packages", b" a b"),
        (b"Origin", b"\xff\xfe"),
        (b"Label", b"no field\nLabel"),
        (b"Label", b"\n\nLabel"),
    ],
)
def test_another_form_is_refused(old: bytes, new: bytes) -> None:
    assert old in CONTENT
    with pytest.raises(FormatError):
        parse_release(CONTENT.replace(old, new, 1))


def test_an_index_listed_twice_is_refused() -> None:
    line = CONTENT.rstrip(b"\n").rpartition(b"\n")[2]
    with pytest.raises(FormatError, match="twice"):
        parse_release(CONTENT + line + b"\n")


def test_a_huge_file_is_refused() -> None:
    with pytest.raises(FormatError, match="too large"):
        parse_release(bytes(MAX_SIZE + 1))


@given(st.binary(max_size=200), st.integers(0, len(CONTENT)))
def test_only_format_errors_escape(noise: bytes, at: int) -> None:
    with contextlib.suppress(FormatError):
        parse_release(CONTENT[:at] + noise + CONTENT[at:])
