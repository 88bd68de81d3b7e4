"""What an entry's signatures say: the file's own, one appended to it, EVM's over its metadata.

A signature says who made the content, not that it belongs at the entry's path.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from undercroft.base import FormatError, VerificationError
from undercroft.formats.ima import FileDigest, ImaEntry, parse_inode, parse_signature
from undercroft.formats.ima.fields import split_digest_field
from undercroft.formats.ima.template import FieldKind
from undercroft.verify.evm_signature import (
    FE1_TYPE,
    FE4_COMPARABLE,
    FE6_KEY,
    verify_evm_signature,
)
from undercroft.verify.ima_modsig import FM4_KEY, verify_modsig
from undercroft.verify.ima_signature import (
    F1_TYPE,
    F4_KEY,
    ImaKeyring,
    verify_ima_signature,
)

_SAYS_NOTHING = frozenset(
    check.id for check in (F1_TYPE, F4_KEY, FM4_KEY, FE1_TYPE, FE4_COMPARABLE, FE6_KEY)
)


@dataclass(frozen=True, slots=True)
class WrongSignature:
    """A signature that is there and wrong."""

    why: str


def signature_of(entry: ImaEntry, digest: FileDigest, keyring: ImaKeyring) -> bool | WrongSignature:
    """Return whether a key of ``keyring`` vouches for the entry's content.

    False if nothing says so: no signature, or none that these keys can speak of.  One that is
    wrong counts more than another that is right.
    """
    fields = entry.fields()
    found = False
    for field_id, verify in _VERIFIERS.items():
        data = fields.get(field_id)
        if not data or not keyring.keys:
            continue
        try:
            verify(data, entry, digest, keyring)
        except (VerificationError, FormatError) as error:
            if isinstance(error, VerificationError) and error.check in _SAYS_NOTHING:
                continue
            return WrongSignature(str(error))
        found = True
    return found


def _own(data: bytes, _entry: ImaEntry, digest: FileDigest, keyring: ImaKeyring) -> object:
    return verify_ima_signature(parse_signature(data), digest, keyring)


def _appended(data: bytes, entry: ImaEntry, _digest: FileDigest, keyring: ImaKeyring) -> object:
    beside = entry.fields().get("d-modsig")
    if not beside:
        raise FormatError("modsig", 0, "an appended signature without its digest")
    return verify_modsig(data, split_digest_field(beside, FieldKind.DIGEST_WITH_ALGO), keyring)


def _metadata(data: bytes, entry: ImaEntry, digest: FileDigest, keyring: ImaKeyring) -> object:
    inode = parse_inode(entry.fields(), entry.order)
    return verify_evm_signature(parse_signature(data), inode, digest, keyring, entry.order)


_VERIFIERS: dict[str, Callable[[bytes, ImaEntry, FileDigest, ImaKeyring], object]] = {
    "sig": _own,
    "modsig": _appended,
    "evmsig": _metadata,
}
