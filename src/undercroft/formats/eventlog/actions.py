"""Actions and separators: events whose data is what was hashed (PFP 1.06, 10.4.1, 10.4.4)."""

from __future__ import annotations

from undercroft.formats.eventlog.text import ascii_text
from undercroft.formats.eventlog.value import Decoded, Digests, EventValue, Opaque, covered

CALLING_EFI_APPLICATION = "Calling EFI Application from Boot Option"
RETURNING_FROM_EFI_APPLICATION = "Returning from EFI Application from Boot Option"
EXIT_BOOT_SERVICES_INVOCATION = "Exit Boot Services Invocation"
EXIT_BOOT_SERVICES_FAILED = "Exit Boot Services Returned with Failure"
EXIT_BOOT_SERVICES_SUCCEEDED = "Exit Boot Services Returned with Success"
UEFI_DEBUG_MODE = "UEFI Debug Mode"
DMA_PROTECTION_DISABLED = "DMA Protection Disabled"

SEPARATOR_ERROR = b"\x01\0\0\0"
SEPARATORS = (b"\0\0\0\0", b"\xff\xff\xff\xff")
"""The two data values of a separator that reports no error."""


class Separator(EventValue, frozen=True, gc=False):
    """EV_SEPARATOR: the end of the firmware's part of a PCR.

    Four zero bytes or four 0xff bytes; 1 (little-endian) reports a firmware error; anything else
    is not of the PC Client profile (Windows ends PCRs 12 to 14 with ``WBCL``).
    """

    data: bytes

    @property
    def standard(self) -> bool:
        """Is it one of the two separators of the PC Client profile?"""
        return self.data in SEPARATORS

    @property
    def error(self) -> bool:
        """Does it report a firmware error?"""
        return self.data[:4] == SEPARATOR_ERROR

    def encode(self) -> bytes:
        """Return the event data."""
        return self.data


def decode_separator(data: bytes, digests: Digests) -> Decoded:
    """EV_SEPARATOR: hashed whole."""
    return covered(Separator(data), data, digests)


def decode_action(data: bytes, digests: Digests) -> Decoded:
    """EV_ACTION and EV_EFI_ACTION: the words are hashed, without a NUL."""
    return covered(ascii_text(data) or Opaque(data, "not text"), data, digests)
