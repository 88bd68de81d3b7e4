"""The distribution's security advisories, as data: which version of which source is fixed.

Two forms are read, both Debian's own: the list of DSAs (``data/DSA/list`` of the security
tracker's repository, and DLA/list alike) and the tracker's JSON export.  Neither is signed: who
supplies one is believed, and a false one can only make a result worse or leave it as it was.

What counts is a fix that exists and is not installed.  An issue without a fix is no advisory:
nobody could act on it, and every machine has some.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from undercroft.base import FormatError

MAX_SIZE = 256 << 20
_LIST = "advisory list"
_TRACKER = "security tracker export"

_HEAD = re.compile(r"\[(\d{1,2} [A-Z][a-z]{2} \d{4})\] (D[SL]A-\d+(?:-\d+)?) (\S.*)")
_FIXED = re.compile(r"\t\[([a-z]+)\] - ([a-z0-9][a-z0-9+.-]*) (\S+)(?: \(.*\))?")
_NO_VERSION = re.compile(r"<[a-z-]+>")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]+")


@dataclass(frozen=True, slots=True)
class Advisory:
    """``source`` of ``release`` (``bookworm``) is fixed in ``version``, as ``id`` says."""

    id: str
    release: str
    source: str
    version: str


def parse_advisories(data: bytes) -> tuple[Advisory, ...]:
    """Read either form; a JSON document is the tracker's.  Raises FormatError."""
    if len(data) > MAX_SIZE:
        raise FormatError(_LIST, 0, "too large", expected=f"at most {MAX_SIZE}", got=len(data))
    return parse_tracker(data) if data.lstrip(b" \r\n")[:1] == b"{" else parse_dsa_list(data)


def parse_dsa_list(data: bytes) -> tuple[Advisory, ...]:
    """Read a DSA or DLA list.  Raises FormatError for a line that is none of its kinds."""
    try:
        lines = data.decode().split("\n")
    except UnicodeDecodeError as error:
        raise FormatError(_LIST, error.start, "not UTF-8") from error
    found, current = [], ""
    for number, line in enumerate(lines, 1):
        if match := _HEAD.fullmatch(line):
            current = match[2]
        elif match := _FIXED.fullmatch(line):
            release, source, version = match.groups()
            if _NO_VERSION.fullmatch(version):
                continue  # <not-affected>, <unfixed>, <end-of-life>: nothing to install
            if not current or not _VERSION.fullmatch(version):
                raise FormatError(_LIST, number, "a fix without advisory or version", got=line[:80])
            found.append(Advisory(current, release, source, version))
        elif line.strip() and not line.startswith("\t"):
            raise FormatError(_LIST, number, "a line that is no advisory", got=repr(line[:80]))
    return _some(found, _LIST)


class _Release(msgspec.Struct, frozen=True):
    status: str
    fixed_version: str = ""


class _Issue(msgspec.Struct, frozen=True):
    releases: Mapping[str, _Release] = {}


def parse_tracker(data: bytes) -> tuple[Advisory, ...]:
    """Read the tracker's JSON: sources, their issues, and the releases of each.

    Raises FormatError.  Of an issue only what is read is held to a form.
    """
    try:
        sources = msgspec.json.decode(data, type=dict[str, dict[str, _Issue]])
    except ValueError as error:
        raise FormatError(_TRACKER, 0, str(error)) from error
    found = [
        Advisory(name, release, source, state.fixed_version)
        for source, issues in sources.items()
        for name, issue in issues.items()
        for release, state in issue.releases.items()
        # "0" says that the release never had the issue.
        if state.status == "resolved" and state.fixed_version not in ("", "0")
    ]
    if bad := next((a for a in found if not _VERSION.fullmatch(a.version)), None):
        raise FormatError(_TRACKER, 0, f"{bad.id}: not a version", got=bad.version[:80])
    return _some(found, _TRACKER)


def _some(found: Iterable[Advisory], name: str) -> tuple[Advisory, ...]:
    advisories = tuple(found)
    if not advisories:
        raise FormatError(name, 0, "there is no advisory in it: nothing would be vulnerable")
    return advisories
