"""EV_IPL: what boot loaders measure, each in its own way.

GRUB (grub-core/commands/efi/tpm.c, grub-core/kern/verifiers.c) hashes a command's text and logs
it after a prefix; of a file it hashes the contents and logs the name.  shim hashes a variable
and logs its name.  systemd-boot and systemd-stub (docs/TPM2_PCR_MEASUREMENTS.md) log UTF-16: the
hashed command line itself, or the name of a PE section, twice: first its name is hashed, then
its contents.
"""

from __future__ import annotations

from undercroft.formats.eventlog.text import AsciiText, Utf16Text, ascii_text, utf16_text
from undercroft.formats.eventlog.value import (
    Claimed,
    Decoded,
    DigestCheck,
    Digests,
    EventValue,
    Opaque,
    hashes_to,
    perhaps_covered,
)

_MATCHES = DigestCheck.MATCHES
_NOT_RECOMPUTABLE = DigestCheck.NOT_RECOMPUTABLE

GRUB_PREFIXES = (
    b"grub_cmd: ",
    b"kernel_cmdline: ",
    b"module_cmdline: ",
    b"grub_cmd ",
    b"grub_kernel_cmdline ",
)

SHIM_LISTS = (b"MokList", b"MokListX", b"SbatLevel", b"Shim", b"HSIStatus", b"MokListXRT")
SHIM_FLAGS = (b"MokListTrusted", b"MokSBState", b"MokDBState", b"MokIgnoreDB", b"MokPolicy")
_SHIM_NAMES = frozenset((*SHIM_LISTS, *SHIM_FLAGS))


class GrubText(EventValue, frozen=True, gc=False):
    """A command that GRUB ran or a command line that it passed on.

    Only ``text`` is hashed.  ``claimed_prefix`` tells command from kernel command line and is the
    log's word; ``end`` is the NUL of the log, or b"" where GRUB's text carried none.
    """

    claimed_prefix: str
    text: str
    end: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        return self.claimed_prefix.encode() + self.text.encode() + self.end


class ShimVariable(EventValue, frozen=True, gc=False):
    """A variable that shim measured by its contents.

    ``flag`` is its value where it is one byte that the digest confirms, else None.
    ``claimed_end`` is the NUL after the name (and a stray byte: shim before 15.3).
    """

    claimed_name: str
    flag: int | None
    claimed_end: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        return self.claimed_name.encode() + self.claimed_end


class LoadOptions(EventValue, frozen=True, gc=False):
    """A command line that systemd-boot or systemd-stub measured; ``end`` is its NUL in the log.

    Some versions hash the 16-bit NUL too and log one byte of it.
    """

    text: str
    end: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        return self.text.encode("utf-16-le") + self.end


class SectionName(EventValue, frozen=True, gc=False):
    """systemd-stub: the name of a PE section, hashed in ASCII with its NUL."""

    name: str
    end: bytes

    def encode(self) -> bytes:
        """Return the event data."""
        return self.name.encode("utf-16-le") + self.end


class MeasuredContents(EventValue, frozen=True, gc=False):
    """Something measured by its contents and logged by its name: a file, a PE section, ..."""

    claimed_name: AsciiText | Utf16Text

    def encode(self) -> bytes:
        """Return the event data."""
        return self.claimed_name.encode()


def decode_ipl(data: bytes, digests: Digests) -> Decoded:
    """EV_IPL, in any PCR."""
    if data.startswith(GRUB_PREFIXES):
        decoded = _grub(data, digests)
        if decoded is not None:
            return decoded
    name = data.partition(b"\0")[0]
    if name in _SHIM_NAMES and len(data) - len(name) <= 2:
        return _shim(name, data, digests)
    text = ascii_text(data)
    if text is not None:
        if hashes_to(digests, data):
            return text, _MATCHES
        return MeasuredContents(text), _NOT_RECOMPUTABLE
    return _utf16(data, digests)


def _grub(data: bytes, digests: Digests) -> Decoded | None:
    prefix = next(p for p in GRUB_PREFIXES if data.startswith(p))
    body = data[len(prefix) :]
    text = body[:-1] if body[-1:] == b"\0" else body
    try:
        value = GrubText(prefix.decode(), text.decode(), body[len(text) :])
    except UnicodeDecodeError:
        return None
    if hashes_to(digests, text) or hashes_to(digests, body):
        return value, _MATCHES
    return Claimed(value), DigestCheck.DIFFERS


def _shim(name: bytes, data: bytes, digests: Digests) -> Decoded:
    end = data[len(name) :]
    if name in SHIM_FLAGS:
        for flag in (0, 1):
            if hashes_to(digests, bytes([flag])):
                return ShimVariable(name.decode(), flag, end), _MATCHES
    return ShimVariable(name.decode(), None, end), _NOT_RECOMPUTABLE


def _utf16(data: bytes, digests: Digests) -> Decoded:
    # An odd number of bytes: the log holds half of the NUL; quirk utf16-log-cut.
    cut = len(data) % 2 and data.endswith(b"\0")
    text = utf16_text(data + b"\0" if cut else data)
    if text is None:
        return perhaps_covered(Opaque(data, "not text"), data, digests)
    body = text.text.encode("utf-16-le")
    end = data[len(body) :]
    if hashes_to(digests, body) or hashes_to(digests, body + b"\0\0"):
        return LoadOptions(text.text, end), _MATCHES
    if text.text.startswith(".") and hashes_to(digests, text.text.encode() + b"\0"):
        return SectionName(text.text, end), _MATCHES
    return MeasuredContents(Utf16Text(text.text, end)), _NOT_RECOMPUTABLE
