r"""What ``ima-buf`` entries measure: kernel buffers instead of files.

The event name says which kind it is (``process_buffer_measurement`` in ima_main.c and its
callers): ``kexec-cmdline`` (func=KEXEC_CMDLINE), ``dm_...`` from drivers/md/dm-ima.c, other
names of func=CRITICAL_DATA, and for func=KEY_CHECK the name of the keyring that a key was added
to, with the key's payload (an X.509 certificate in DER) as the buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

from cryptography import x509

Pairs: TypeAlias = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class KexecCmdline:
    """The command line of a kernel that was loaded for kexec."""

    command_line: str


@dataclass(frozen=True, slots=True)
class KeyringKey:
    """A certificate that was added to a keyring."""

    keyring: str
    certificate: bytes
    subject: str
    key_id: bytes | None


@dataclass(frozen=True, slots=True)
class DeviceMapperEvent:
    """A device-mapper event: records (ended by ``;``) of ``key=value`` pairs (parted by ``,``).

    Documentation/admin-guide/device-mapper/dm-ima.rst.  Backslash escapes are undone; a word
    without ``=`` is a pair with an empty value.
    """

    event: str
    records: tuple[Pairs, ...]

    def value(self, key: str) -> str | None:
        """Return the first value of ``key`` in any record, or None."""
        return next((v for record in self.records for k, v in record if k == key), None)


@dataclass(frozen=True, slots=True)
class CriticalData:
    """Text that a kernel subsystem measured (``kernel_version``, ``selinux-state``)."""

    event: str
    text: str


@dataclass(frozen=True, slots=True)
class OpaqueBuffer:
    """Bytes whose meaning we do not know (``selinux-policy-hash`` is a bare digest)."""

    event: str
    data: bytes


MeasuredBuffer: TypeAlias = (
    KexecCmdline | KeyringKey | DeviceMapperEvent | CriticalData | OpaqueBuffer
)


def decode_buffer(name: bytes, data: bytes) -> MeasuredBuffer:
    """Return what the buffer ``data`` of the event ``name`` says.  Never fails: see OpaqueBuffer.

    The name is the guest kernel's word for what it measured; a file cannot get into an
    ``ima-buf`` entry, but a user's keyring may have any name.
    """
    event = name.decode("utf-8", "backslashreplace")
    text = _printable(data)
    if event == "kexec-cmdline" and text is not None:
        return KexecCmdline(text)
    if event.startswith("dm_") and text is not None:
        records = _records(text)
        if records is not None:
            return DeviceMapperEvent(event, records)
    if data[:1] == b"\x30":
        key = _certificate(event, data)
        if key is not None:
            return key
    if text is not None:
        return CriticalData(event, text)
    return OpaqueBuffer(event, data)


def describe_buffer(buffer: MeasuredBuffer) -> str:
    """Return what a buffer says, in words and on one line."""
    if isinstance(buffer, KexecCmdline):
        return f"command line for kexec: {buffer.command_line!r}"
    if isinstance(buffer, KeyringKey):
        key_id = buffer.key_id.hex() if buffer.key_id else "none"
        return f"certificate of {buffer.subject!r} (key id {key_id}) added to {buffer.keyring!r}"
    if isinstance(buffer, DeviceMapperEvent):
        pairs = [f"{key}={value!r}" for record in buffer.records for key, value in record]
        return f"device mapper: {', '.join(pairs)}"
    if isinstance(buffer, CriticalData):
        return f"{buffer.text!r}"
    return f"{len(buffer.data)} bytes: {buffer.data[:64].hex()}{'…' if buffer.data[64:] else ''}"


def _printable(data: bytes) -> str | None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return None
    return text if text.replace("\n", "").isprintable() else None


def _certificate(keyring: str, data: bytes) -> KeyringKey | None:
    try:
        certificate = x509.load_der_x509_certificate(data)
        subject = certificate.subject.rfc4514_string()
        key_id = certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
    except x509.ExtensionNotFound:
        return KeyringKey(keyring, data, subject, None)
    except _NOT_A_CERTIFICATE:
        return None
    return KeyringKey(keyring, data, subject, key_id.value.digest)


_NOT_A_CERTIFICATE = (
    ValueError,
    x509.InvalidVersion,
    x509.DuplicateExtension,
    x509.UnsupportedGeneralNameType,
)


def _cut(text: str, mark: str) -> list[str]:
    """Split ``text`` at every ``mark`` that no backslash stands before."""
    pieces, piece, escaped = [], "", False
    for char in text:
        if char == mark and not escaped:
            pieces.append(piece)
            piece = ""
        else:
            piece += char
        escaped = char == "\\" and not escaped
    return [*pieces, piece]


def _unescaped(text: str) -> str:
    shown, escaped = [], False
    for char in text:
        if char != "\\" or escaped:
            shown.append(char)
        escaped = char == "\\" and not escaped
    return "".join(shown)


def _records(text: str) -> tuple[Pairs, ...] | None:
    *records, rest = _cut(text, ";")
    if rest or not records:
        return None
    return tuple(tuple(_pair(word) for word in _cut(r, ",") if word) for r in records)


def _pair(word: str) -> tuple[str, str]:
    key, *values = _cut(word, "=")
    return _unescaped(key), _unescaped("=".join(values))
