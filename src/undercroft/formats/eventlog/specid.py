"""The event log's own header: TCG_EfiSpecIDEvent and its TPM 1.2 ancestors.

PFP 1.06, section 10.4.5.1 (``Spec ID Event03``); TCG EFI Platform 1.22, section 7.4
(``Spec ID Event02``); PC Client Implementation for Conventional BIOS 1.21, section 11.3.4.1
(``Spec ID Event00``).
"""

from __future__ import annotations

import struct

from undercroft.base import HashAlgorithm
from undercroft.formats.eventlog.value import EventValue
from undercroft.formats.reader import BoundedReader

SPEC_ID_00 = b"Spec ID Event00\0"
SPEC_ID_02 = b"Spec ID Event02\0"
SPEC_ID_03 = b"Spec ID Event03\0"

MAX_ALGORITHMS = 16
"""More than the TCG has registered for PCR banks."""

_FIXED = struct.Struct("<16sIBBBB")
_ALGORITHM = struct.Struct("<HH")


class SpecIdEvent(EventValue, frozen=True, gc=False):
    """The first event of a log.

    ``algorithms`` are (TPM_ALG_ID, digest size) pairs, empty before version 03; with
    ``Spec ID Event00`` the last number is reserved and not a size of UINTN.  Firmware is known
    to leave vendorInfo out (None) and to write bytes after it (``claimed_trailing``).
    """

    signature: bytes
    claimed_platform_class: int
    claimed_version_minor: int
    claimed_version_major: int
    claimed_errata: int
    claimed_uintn_size: int
    algorithms: tuple[tuple[int, int], ...]
    claimed_vendor_info: bytes | None
    claimed_trailing: bytes = b""

    @property
    def claimed_version(self) -> str:
        """The specification's version as people write it, such as ``2.0 errata 2``."""
        major, minor = self.claimed_version_major, self.claimed_version_minor
        return f"{major}.{minor} errata {self.claimed_errata}"

    def encode(self) -> bytes:
        """Return the event data."""
        parts = [
            _FIXED.pack(
                self.signature,
                self.claimed_platform_class,
                self.claimed_version_minor,
                self.claimed_version_major,
                self.claimed_errata,
                self.claimed_uintn_size,
            )
        ]
        if self.signature == SPEC_ID_03:
            parts.append(struct.pack("<I", len(self.algorithms)))
            parts += [_ALGORITHM.pack(*pair) for pair in self.algorithms]
        if self.claimed_vendor_info is not None:
            parts += [bytes([len(self.claimed_vendor_info)]), self.claimed_vendor_info]
        return b"".join(parts) + self.claimed_trailing


def decode_spec_id(data: bytes, base: int = 0) -> SpecIdEvent:
    """Decode any of the three versions.

    Raises FormatError; also for a list of algorithms that is empty or too long, that names one
    twice, or that gives one the wrong size, because no digest in the log could be trusted then.
    """
    reader = BoundedReader(data, "TCG_EfiSpecIDEvent", order="little", base=base)
    fixed = reader.unpack(_FIXED, "the Spec ID event")
    algorithms = _algorithms(reader) if fixed[0] == SPEC_ID_03 else ()
    vendor_info = reader.sized(1, "vendorInfo") if reader.remaining else None
    return SpecIdEvent(*(*fixed, algorithms, vendor_info, reader.rest()))


def _algorithms(reader: BoundedReader) -> tuple[tuple[int, int], ...]:
    count = reader.u32("numberOfAlgorithms")
    if not 1 <= count <= MAX_ALGORITHMS:
        raise reader.fail("numberOfAlgorithms", expected=f"1 to {MAX_ALGORITHMS}", got=count)
    pairs: dict[int, int] = {}
    for _ in range(count):
        alg_id, size = reader.unpack(_ALGORITHM, "digestSizes")
        known = HashAlgorithm.from_alg_id(alg_id)
        if alg_id in pairs:
            raise reader.fail("an algorithm stands twice in digestSizes", got=f"{alg_id:#06x}")
        if size == 0 or (known and known.size != size):
            expected = known.size if known else "more than 0"
            raise reader.fail(f"digestSize of {known or hex(alg_id)}", expected=expected, got=size)
        pairs[alg_id] = size
    return tuple(pairs.items())
