"""The fields of an entry: their bytes, their meaning and their ASCII form.

A path is bytes: Linux promises no encoding.  It is compared as bytes and shown escaped.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from undercroft.base import Digest
from undercroft.formats.ima.algorithms import LinuxHash
from undercroft.formats.ima.template import FIELDS, REQUIRED_FIELDS, FieldKind

Order = Literal["little", "big"]

IMA_DIGEST_SIZE = 20
"""The room a violation's digest had in ``d-ng`` before Linux 6.1, whatever the algorithm."""

MAX_DIGEST_SIZE = 128
"""Twice the kernel's HASH_MAX_DIGESTSIZE: no digest of an algorithm we do not know is longer."""

_ALGORITHM = re.compile(rb"[a-z0-9-]{1,64}")
_DIGEST_TYPES = {b"ima": "ima", b"verity": "verity"}
_LOWER_HEX = re.compile(rb"(?:[0-9a-f]{2})*")
_DECIMAL = re.compile(rb"0|[1-9][0-9]{0,9}")


@dataclass(frozen=True, slots=True)
class FileDigest:
    """What an entry says the content was.

    ``kind`` is ``ima`` for a hash of the whole file and ``verity`` for an fs-verity digest;
    ``name`` is the algorithm as the kernel calls it (empty in ``d`` fields and very old lists);
    ``algorithm`` is None for one that we do not know.
    """

    kind: str
    name: str
    algorithm: LinuxHash | None
    value: bytes

    def __str__(self) -> str:
        prefix = f"{self.kind}:" if self.kind != "ima" else ""
        return f"{prefix}{self.name or 'digest'}:{self.value.hex()}"

    @property
    def digest(self) -> Digest | None:
        """The digest as a value that knows its algorithm, or None if it is not a whole one."""
        known = self.algorithm.algorithm if self.algorithm else None
        if known is None or len(self.value) != known.size:
            return None
        return Digest(known, self.value)


def escape_path(path: bytes) -> str:
    """Return ``path`` for a person: UTF-8 where it is, ``\\xNN`` for everything else.

    Controls, separators that no terminal shows and the backslash itself are escaped, so that two
    different paths never look the same and none moves the cursor.
    """
    text = path.decode("utf-8", "backslashreplace") if b"\\" not in path else _escape_all(path)
    return text if text.isprintable() else _escape_all(path)


def _escape_all(path: bytes) -> str:
    shown = []
    for char in path.decode("utf-8", "surrogateescape"):
        if char.isprintable() and char != "\\":
            shown.append(char)
        else:
            shown += [f"\\x{byte:02x}" for byte in char.encode("utf-8", "surrogateescape")]
    return "".join(shown)


def split_digest_field(data: bytes, kind: FieldKind) -> FileDigest:
    """Return the digest in a ``d``, ``d-ng`` or ``d-ngv2`` field.  Raises ValueError."""
    if kind is FieldKind.DIGEST:
        return _plain_digest(data)
    prefix, mark, value = data.partition(b":\0")
    if not mark:
        raise ValueError("a digest field has no colon and NUL after its algorithm")
    digest_type = b"ima"
    if kind is FieldKind.DIGEST_WITH_TYPE_AND_ALGO:
        digest_type, mark, prefix = prefix.partition(b":")
        if digest_type not in _DIGEST_TYPES or not mark:
            raise ValueError("a digest's type is neither ima nor verity")
    elif not prefix:
        # Before Linux 3.15 d-ng named no algorithm for SHA-1 and MD5: ":" NUL digest.
        plain = _plain_digest(value)
        return FileDigest("ima", "", plain.algorithm, value)
    if not _ALGORITHM.fullmatch(prefix):
        raise ValueError("a hash algorithm's name is not lower-case letters, digits and hyphens")
    if len(value) > MAX_DIGEST_SIZE:
        raise ValueError(f"a digest of {len(value)} bytes is longer than any that there is")
    algorithm = LinuxHash.from_name(prefix)
    if algorithm and len(value) != algorithm.size and value != bytes(IMA_DIGEST_SIZE):
        raise ValueError(f"a {algorithm} digest has {algorithm.size} bytes, not {len(value)}")
    return FileDigest(_DIGEST_TYPES[digest_type], prefix.decode(), algorithm, value)


def _plain_digest(data: bytes) -> FileDigest:
    # The original template is limited to SHA-1 and MD5 (ima_template_hash_algo_allowed).
    by_size = {20: LinuxHash.SHA1, 16: LinuxHash.MD5}
    if len(data) not in by_size:
        raise ValueError(f"a digest without an algorithm has 16 or 20 bytes, not {len(data)}")
    return FileDigest("ima", "", by_size[len(data)], data)


def check_field(field: str, data: bytes) -> None:
    """Raise ValueError unless ``data`` is what the kernel can write for the field ``field``."""
    kind = FIELDS[field]
    if not data:
        if field in REQUIRED_FIELDS:
            raise ValueError("it is empty")
        return
    if kind in _DIGEST_KINDS:
        split_digest_field(data, kind)
    elif kind is FieldKind.STRING:
        # No kernel writes a NUL inside, and a reader of C strings would stop there.  We do not:
        # it belongs to the name, is shown as \x00, and equals no path that a file can have.
        if data[-1]:
            raise ValueError("a string is not ended by a NUL")
    elif kind in _UINT_SIZES and len(data) != _UINT_SIZES[kind]:
        raise ValueError(f"an integer of {_UINT_SIZES[kind]} bytes has {len(data)}")
    elif field == "xattrlengths" and len(data) % 4:
        raise ValueError("a list of 32-bit lengths has a size that 4 does not divide")


def check_fields(fields: Sequence[str], values: Sequence[bytes]) -> None:
    """Check each of ``values``, of the fields ``fields``; the ValueError names the field."""
    for field, value in zip(fields, values, strict=True):
        try:
            check_field(field, value)
        except ValueError as error:
            raise ValueError(f"field {field}: {error}") from None


_DIGEST_KINDS = frozenset(
    {FieldKind.DIGEST, FieldKind.DIGEST_WITH_ALGO, FieldKind.DIGEST_WITH_TYPE_AND_ALGO}
)
_UINT_SIZES = {FieldKind.UINT16: 2, FieldKind.UINT32: 4}


def field_to_ascii(field: str, data: bytes, order: Order) -> bytes:
    """Return the field as ``ascii_runtime_measurements`` shows it (``field_show``)."""
    kind = FIELDS[field]
    if not data:
        return b""
    if kind is FieldKind.STRING:
        text = data[:-1]
        if b" " in text or b"\n" in text:
            raise ValueError("a name with a space or a newline has no ASCII form")
        return text
    if kind in _UINT_SIZES:
        return str(int.from_bytes(data, order)).encode()
    if kind in (FieldKind.DIGEST_WITH_ALGO, FieldKind.DIGEST_WITH_TYPE_AND_ALGO):
        prefix, _, value = data.partition(b":\0")
        return (prefix + b":" if prefix else b"") + value.hex().encode()
    return data.hex().encode()


def field_from_ascii(field: str, text: bytes, order: Order) -> bytes:
    """Return the field's bytes for its ASCII form.  Raises ValueError."""
    kind = FIELDS[field]
    if kind is FieldKind.STRING and (text or field in REQUIRED_FIELDS):
        data = text + b"\0"
    elif not text:
        data = b""
    elif kind in _UINT_SIZES:
        data = _uint(text, _UINT_SIZES[kind], order)
    elif kind in (FieldKind.DIGEST_WITH_ALGO, FieldKind.DIGEST_WITH_TYPE_AND_ALGO):
        prefix, colon, value = text.rpartition(b":")
        if colon and not prefix:
            raise ValueError("a digest has a colon and no algorithm")
        data = prefix + b":\0" + unhex(value)
    else:
        data = unhex(text)
    check_field(field, data)
    return data


def unhex(text: bytes) -> bytes:
    """Return the bytes for lower-case hexadecimal digits, two for each.  Raises ValueError."""
    if not _LOWER_HEX.fullmatch(text):
        raise ValueError("not pairs of lower-case hexadecimal digits")
    return bytes.fromhex(text.decode())


def _uint(text: bytes, size: int, order: Order) -> bytes:
    if not _DECIMAL.fullmatch(text):
        raise ValueError("not a decimal number")
    try:
        return int(text).to_bytes(size, order)
    except OverflowError:
        raise ValueError(f"a number does not fit in {size} bytes") from None
