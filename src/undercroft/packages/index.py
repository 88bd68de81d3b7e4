"""Packages indexes: what an archive offers, and the digest of every package file."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, KeysView
from dataclasses import dataclass

from debian.debian_support import Version

from undercroft.base import FormatError, VerificationError
from undercroft.packages.deb822 import parse_stanza, required
from undercroft.packages.release import IndexEntry, VerifiedRelease

MAX_PACKAGE_SIZE = 4 << 30
_NAME = "Packages"
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]+")
_FIRST_FIELD = re.compile(rb"\nPackage: ([^\n]*)\n")
_ARCHITECTURE = re.compile(r"[a-z0-9-]+")


@dataclass(frozen=True, slots=True)
class Stanza:
    """What an index says of one package.  ``size`` in bytes, ``sha256`` in hexadecimal.

    ``depends`` is what it needs: Pre-Depends, then Depends.
    """

    name: str
    version: str
    architecture: str
    filename: str
    size: int
    sha256: str
    depends: str

    @property
    def order(self) -> Version:
        """A key that compares as dpkg compares versions (deb-version(7))."""
        return Version(self.version)


def verify_index(data: bytes, entry: IndexEntry, what: str) -> None:
    """Raise VerificationError ``archive.index`` unless ``data`` is the index of ``entry``."""
    if len(data) != entry.size:
        raise VerificationError(
            "archive.index", f"{what} has another size", expected=entry.size, got=len(data)
        )
    if (digest := hashlib.sha256(data).hexdigest()) != entry.sha256:
        raise VerificationError(
            "archive.index", f"{what} has another digest", expected=entry.sha256, got=digest
        )


def _match(pattern: re.Pattern[str], text: str, field: str, base: int) -> str:
    if not pattern.fullmatch(text):
        raise FormatError(_NAME, base, f"{field} has a forbidden form", got=repr(text[:80]))
    return text


def parse_package(text: str, *, base: int = 0) -> Stanza:
    """Parse one stanza of a Packages index.  Raises FormatError."""
    fields = parse_stanza(text, _NAME, base=base)

    def field(name: str, pattern: re.Pattern[str]) -> str:
        return _match(pattern, required(fields, name, _NAME, base=base), name, base)

    size = int(field("Size", re.compile(r"[0-9]{1,12}")))
    if size > MAX_PACKAGE_SIZE:
        raise FormatError(_NAME, base, "a package is too large", got=size)
    return Stanza(
        name=field("Package", _PACKAGE),
        version=field("Version", _VERSION),
        architecture=field("Architecture", _ARCHITECTURE),
        filename=required(fields, "Filename", _NAME, base=base),
        size=size,
        sha256=field("SHA256", _SHA256),
        depends=", ".join(
            fields[name].replace("\n", " ") for name in ("pre-depends", "depends") if name in fields
        ),
    )


class PackagesIndex:
    """A Packages index whose digest the Release file names.

    The text is searched when asked and only the stanzas found are parsed: a whole release has
    60,000 of them and a guest needs a handful.
    """

    def __init__(self, data: bytes, release: VerifiedRelease, meta_key: str) -> None:
        """Take ``data`` as the index ``meta_key`` (``main/binary-amd64/Packages``).

        Raises VerificationError ``archive.index`` if it is not.
        """
        entry = release.release.indexes.get(meta_key)
        if entry is None:
            raise VerificationError(
                "archive.index", f"the Release file of {release.origin} does not name {meta_key}"
            )
        verify_index(data, entry, f"{meta_key} of {release.origin}")
        self.release = release
        self.component = meta_key.split("/")[0]
        self._text = b"\n" + data
        self._found: dict[bytes, list[int]] | None = None

    @property
    def origin(self) -> str:
        """Archive, suite and component."""
        return f"{self.release.origin} {self.component}"

    @property
    def names(self) -> KeysView[bytes]:
        """The name of every package in the index."""
        return self._places().keys()

    def _places(self) -> dict[bytes, list[int]]:
        """Return where the stanzas of each package begin; found at the first question."""
        if self._found is None:
            self._found = {}
            # Package is a stanza's first field (wiki.debian.org/DebianRepository/Format).
            for match in _FIRST_FIELD.finditer(self._text):
                self._found.setdefault(match[1], []).append(match.start() + 1)
        return self._found

    def find(self, name: str) -> Iterator[Stanza]:
        """Yield every stanza of the package ``name``.  Raises FormatError."""
        for start in self._places().get(name.encode(), ()):
            end = self._text.find(b"\n\n", start)
            stanza = self._text[start : end if end >= 0 else len(self._text)]
            try:
                yield parse_package(stanza.decode(), base=start - 1)
            except UnicodeDecodeError as error:
                raise FormatError(_NAME, start - 1 + error.start, "not UTF-8") from error
