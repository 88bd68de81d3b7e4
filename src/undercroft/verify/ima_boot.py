"""Does an IMA list belong to the boot that the boot PCRs speak of?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.ima import FileDigest
from undercroft.verify.checks import Check
from undercroft.verify.ima_quirks import BOOT_AGGREGATE_PCRS_0_7
from undercroft.verify.ima_walk import hasher_of

_SOURCE = "Linux security/integrity/ima/ima_crypto.c: ima_calc_boot_aggregate"
I9_BOOT_AGGREGATE = Check(
    "I9", "ima.boot-aggregate", "boot_aggregate is the hash of the boot PCRs", _SOURCE
)
I10_BOOT_AGGREGATE_BANK = Check(
    "I10",
    "ima.boot-aggregate-bank",
    "the boot PCRs that boot_aggregate covers are in the evidence",
    _SOURCE,
)


@dataclass(frozen=True, slots=True)
class VerifiedBootAggregate:
    """A ``boot_aggregate`` that is the hash of the boot PCRs given.

    ``pcrs`` are the PCRs it covers; ``quirks`` names the rule that fired if not the usual one.
    """

    digest: FileDigest
    pcrs: range
    quirks: tuple[str, ...] = ()


def verify_boot_aggregate(digest: FileDigest, banks: Sequence[PcrBank]) -> VerifiedBootAggregate:
    """Compare ``digest``, of a ``boot_aggregate`` entry, with the boot PCRs in ``banks``.

    The banks are quoted, or replayed from the event log and compared with a quote there.
    ``ima_calc_boot_aggregate_tfm``: the hash, in the entry's own algorithm, over that bank's
    PCRs 0 to 7, and since Linux 5.8 (commit 20c59ce010f8) 0 to 9 in every bank but SHA-1.

    Raises VerificationError: check ``ima.boot-aggregate`` if it is another value,
    ``ima.boot-aggregate-bank`` if the PCRs that would tell are not among ``banks``.
    """
    algorithm = digest.algorithm.algorithm if digest.algorithm else None
    for bank in banks:
        if bank.algorithm is algorithm:
            break
    else:
        raise _cannot_tell(digest, "PCRs 0 to 9")
    quoted = bank.values
    missing, computed = range(0), b""
    for pcrs, quirks in _COVERED_BY_SHA1 if algorithm is HashAlgorithm.SHA1 else _COVERED:
        try:
            values = b"".join([quoted[pcr] for pcr in pcrs])
        except KeyError:
            missing = missing or pcrs
            continue
        value = hasher_of(bank.algorithm)(values).digest()
        if value == digest.value:
            return VerifiedBootAggregate(digest, pcrs, quirks)
        computed = computed or value
    if missing:
        raise _cannot_tell(digest, f"PCRs 0 to {missing[-1]}")
    raise _other_boot(digest, computed)


_COVERED: tuple[tuple[range, tuple[str, ...]], ...] = (
    (range(10), ()),
    (range(8), (BOOT_AGGREGATE_PCRS_0_7.id,)),
)
_COVERED_BY_SHA1: tuple[tuple[range, tuple[str, ...]], ...] = ((range(8), ()),)


def _cannot_tell(digest: FileDigest, needed: str) -> VerificationError:
    return I10_BOOT_AGGREGATE_BANK.failed(
        "the boot PCRs that boot_aggregate covers are not in the evidence",
        expected=f"{needed} of the {digest.name or 'sha1'} bank",
        remedy="quote them, or send the event log of that bank",
    )


def _other_boot(digest: FileDigest, computed: bytes) -> VerificationError:
    what = "boot_aggregate is not the hash of the boot PCRs: the list is of another boot"
    if not any(digest.value):
        what = "boot_aggregate is zero: the kernel saw no TPM when IMA started"
    return I9_BOOT_AGGREGATE.failed(what, expected=computed.hex(), got=digest.value.hex())
