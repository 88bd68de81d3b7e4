"""The root of an archive's chain: the signed Release file.

A Release file names every index of one suite with its digest (Debian's "repository format",
wiki.debian.org/DebianRepository/Format).  This module takes bytes and ``now`` and does no I/O;
``gpgv`` made the :class:`SignedText`.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Mapping
from dataclasses import dataclass

from undercroft.base import FormatError, VerificationError
from undercroft.packages.deb822 import parse_stanza, required

MAX_SIZE = 16 << 20
"""Bytes of the largest Release file we read; Debian's have about 150 KiB."""

_NAME = "Release"
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_DATE = re.compile(
    r"(?:Mon|Tue|Wed|Thu|Fri|Sat|Sun), (\d{1,2}) ([A-Z][a-z]{2}) (\d{4}) (\d{2}):(\d{2}):(\d{2})"
    r" (?:UTC|GMT|\+0000)",
    re.ASCII,
)
_ENTRY = re.compile(r"([0-9a-f]{64})\s+([0-9]{1,15})\s+(\S+)")


@dataclass(frozen=True, slots=True)
class SignedText:
    """Bytes that a signature covers, exactly; ``file_sha256`` is of the file that held both.

    ``signers`` are the fingerprints (40 or 64 upper-case hexadecimal digits) of the keys whose
    signatures were good, primary key before the subkey that signed.
    """

    content: bytes
    file_sha256: str
    signers: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class IndexEntry:
    """What a Release file says of one index file.  ``size`` in bytes, ``sha256`` in hexadecimal."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class UnverifiedRelease:
    """The fields of a Release file that nobody has judged yet."""

    origin: str
    label: str
    suite: str
    codename: str
    version: str
    date: dt.datetime
    valid_until: dt.datetime | None
    indexes: Mapping[str, IndexEntry]

    @property
    def lineage(self) -> str:
        """What stays the same from one issue of this Release file to the next."""
        return f"{self.origin}/{self.label}/{self.codename}"


@dataclass(frozen=True, slots=True)
class FreshnessRule:
    """How old or new a Release file may be; taken from the machine's own apt configuration.

    With ``check_valid_until`` false (``Acquire::Check-Valid-Until``: archives kept for later have
    nothing else to offer) an expired file is taken, and ``VerifiedRelease.note`` says so.
    ``max_future`` is how far the Date may lie ahead (``Acquire::Max-FutureTime``).
    """

    check_valid_until: bool = True
    check_date: bool = True
    max_future: dt.timedelta = dt.timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class VerifiedRelease:
    """A Release file that an accepted key signed, fresh, of the suite that was asked for."""

    release: UnverifiedRelease
    sha256: str
    signer: str
    note: str = ""

    @property
    def origin(self) -> str:
        """One line that names the archive and suite."""
        return f"{self.release.label} {self.release.codename}"


def _date(fields: Mapping[str, str], name: str) -> dt.datetime:
    text = required(fields, name, _NAME)
    match = _DATE.fullmatch(text)
    try:
        if match is None:
            raise ValueError("another form")
        day, month, *rest = match.groups()
        year, hour, minute, second = map(int, rest)
        return dt.datetime(
            year, _MONTHS.index(month) + 1, int(day), hour, minute, second, tzinfo=dt.UTC
        )
    except ValueError as error:
        raise FormatError(
            _NAME, 0, f"{name} is not a date in UTC", expected="as date -Ru writes it",
            got=repr(text[:60]),
        ) from error  # fmt: skip


def _indexes(text: str) -> dict[str, IndexEntry]:
    entries: dict[str, IndexEntry] = {}
    for line in text.split("\n"):
        if not line.strip():
            continue
        match = _ENTRY.fullmatch(line.strip())
        if match is None:
            raise FormatError(_NAME, 0, "a line under SHA256 is no entry", got=repr(line[:80]))
        if match[3] in entries:
            raise FormatError(_NAME, 0, "an index is listed twice", got=match[3])
        entries[match[3]] = IndexEntry(int(match[2]), match[1])
    return entries


def parse_release(content: bytes) -> UnverifiedRelease:
    """Parse the text of a Release file.  Raises FormatError.

    MD5Sum and SHA1 are not read: SHA256 is in every archive since 2016, and is required here.
    """
    if len(content) > MAX_SIZE:
        raise FormatError(_NAME, 0, "too large", expected=f"at most {MAX_SIZE}", got=len(content))
    try:
        text = content.decode()
    except UnicodeDecodeError as error:
        raise FormatError(_NAME, error.start, "not UTF-8") from error
    fields = parse_stanza(text, _NAME)
    indexes = _indexes(required(fields, "SHA256", _NAME))
    return UnverifiedRelease(
        origin=required(fields, "Origin", _NAME),
        label=fields.get("label", ""),
        suite=fields.get("suite", ""),
        codename=required(fields, "Codename", _NAME),
        version=fields.get("version", ""),
        date=_date(fields, "Date"),
        valid_until=_date(fields, "Valid-Until") if "valid-until" in fields else None,
        indexes=indexes,
    )


def verify_release(
    signed: SignedText,
    *,
    suite: str,
    now: dt.datetime,
    rule: FreshnessRule,
    last_seen: Mapping[str, dt.datetime],
) -> VerifiedRelease:
    """Return the Release file in ``signed``, or raise VerificationError or FormatError.

    ``suite`` is the suite or codename that was asked for; ``last_seen`` gives for each
    :attr:`UnverifiedRelease.lineage` the newest Date accepted before.  The checks:

    1. ``archive.signature``: somebody signed it (``gpgv`` accepted the signature itself);
    2. ``archive.suite``: it is of the suite that was asked for, so that a mirror cannot answer
       with another suite's file, however well signed;
    3. ``archive.date``: it is not from the future;
    4. ``archive.valid-until``: it has not expired;
    5. ``archive.rollback``: it is not older than one that was accepted before.
    """
    if not signed.signers:
        raise VerificationError("archive.signature", "the Release file has no good signature")
    release = parse_release(signed.content)
    if suite not in {release.suite, release.codename}:
        raise VerificationError(
            "archive.suite",
            "the Release file is of another suite",
            expected=suite,
            got=f"{release.suite} ({release.codename})",
        )
    if rule.check_date and release.date > now + rule.max_future:
        raise VerificationError(
            "archive.date",
            f"the Release file of {release.lineage} is from the future",
            expected=f"at most {now:%Y-%m-%d %H:%M:%S}",
            got=f"{release.date:%Y-%m-%d %H:%M:%S}",
            remedy="check this machine's clock",
        )
    note = ""
    if release.valid_until is not None and release.valid_until < now:
        if rule.check_valid_until:
            raise VerificationError(
                "archive.valid-until",
                f"the Release file of {release.lineage} has expired",
                expected=f"valid at {now:%Y-%m-%d %H:%M:%S}",
                got=f"valid until {release.valid_until:%Y-%m-%d %H:%M:%S}",
                remedy="use a mirror that is kept up to date",
            )
        note = f"expired {release.valid_until:%Y-%m-%d}; apt here does not check Valid-Until"
    newest = last_seen.get(release.lineage)
    if newest is not None and release.date < newest:
        raise VerificationError(
            "archive.rollback",
            f"the Release file of {release.lineage} is older than one seen before",
            expected=f"{newest:%Y-%m-%d %H:%M:%S} or later",
            got=f"{release.date:%Y-%m-%d %H:%M:%S}",
            remedy="use a mirror that is kept up to date",
        )
    return VerifiedRelease(release, signed.file_sha256, signed.signers[0], note)
