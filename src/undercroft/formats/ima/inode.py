"""What an ``evm-sig`` entry says of a file's inode: owner, mode and security attributes.

``ima_template_lib.c`` (``ima_eventinodexattrnames_init`` and the like) and ``evm_main.c``
(``evm_read_protected_xattrs``): the names end to end with ``|`` between them and a NUL at the end,
their values' sizes as 32-bit numbers, and the values end to end; all in the order in which EVM
hashes them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from undercroft.base import FormatError

FORMAT = "evm-sig inode fields"
FIELDS = ("xattrnames", "xattrlengths", "xattrvalues", "iuid", "igid", "imode")


@dataclass(frozen=True, slots=True)
class InodeMetadata:
    """Owner, mode (``i_mode``) and the protected extended attributes, in EVM's order."""

    uid: int
    gid: int
    mode: int
    xattrs: tuple[tuple[bytes, bytes], ...]

    def encode(self, order: Literal["little", "big"]) -> dict[str, bytes]:
        """Return the fields that :func:`parse_inode` takes."""
        names = b"|".join(name for name, _ in self.xattrs)
        return {
            "xattrnames": names + b"\0" if names else b"",
            "xattrlengths": b"".join(len(v).to_bytes(4, order) for _, v in self.xattrs),
            "xattrvalues": b"".join(value for _, value in self.xattrs),
            "iuid": self.uid.to_bytes(4, order),
            "igid": self.gid.to_bytes(4, order),
            "imode": self.mode.to_bytes(2, order),
        }


def parse_inode(fields: Mapping[str, bytes], order: Literal["little", "big"]) -> InodeMetadata:
    """Parse the inode's fields of an entry, numbers in ``order``.  Raises FormatError."""
    names, lengths, values, uid, gid, mode = (fields.get(name, b"") for name in FIELDS)
    if (len(uid), len(gid), len(mode)) != (4, 4, 2):
        raise FormatError(FORMAT, 0, "owner or mode is missing")
    split = names.removesuffix(b"\0").split(b"|") if names else []
    if names and not names.endswith(b"\0"):
        raise FormatError(FORMAT, 0, "the names are not ended by a NUL")
    if len(lengths) != 4 * len(split) or not all(split) or len(set(split)) != len(split):
        raise FormatError(
            FORMAT,
            0,
            "not one name and one size for each attribute",
            expected=4 * len(split),
            got=len(lengths),
        )
    xattrs, at = [], 0
    for index, name in enumerate(split):
        size = int.from_bytes(lengths[4 * index : 4 * index + 4], order)
        xattrs.append((name, values[at : at + size]))
        at += size
    if at != len(values):
        raise FormatError(FORMAT, 0, "the sizes are not the values'", expected=at, got=len(values))
    return InodeMetadata(
        int.from_bytes(uid, order),
        int.from_bytes(gid, order),
        int.from_bytes(mode, order),
        tuple(xattrs),
    )
