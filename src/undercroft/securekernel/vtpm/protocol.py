"""The secure kernel's socket at the multiplexer: one batch of TPM commands in, responses out.

A message is a 32-bit big-endian size and that many bytes; the first byte is the kind.  Requests:

====== ======= ==========================================================================
kind   name    body
====== ======= ==========================================================================
1      BATCH   u8 locality, u8 count, then for each command: u32 size, bytes,
               u8 patches, for each u16 offset and u8 index, u8 ends, for each u8 index
               (see wire.Command)
2      STATUS  nothing; the answer is JSON
3      KEYS    nothing; the answer is JSON: for each key type public, name, context (hex)
4      RECORD  u16 size, name, u32 size, data: extend PCR 19 and the log; no answer
5      LOG     u32 number of the launch; the answer is the log
6      LAUNCH  u32 size, manifest, u8 count, for each u16 size, name, u32 size, data; no answer
7      QUOTE   u8 key (0 ECC, 1 RSA), u16 size, qualifyingData, TPML_PCR_SELECTION; the answer is
               that of a batch, with no response where a batch must be tried instead
====== ======= ==========================================================================

Responses: 0 OK (a batch: u32 number of the launch, u32 size of its log, u8 count, for each u32 size
and response), 1 UNAVAILABLE (swtpm cannot be reached, or the TPM refused), 2 BUSY, 3 MALFORMED; the
last three carry a text.

The commands of one batch run in one slot: no guest command comes in between.  The batch ends at
the first command that the TPM refuses; its response is the last one returned.
"""

from __future__ import annotations

import enum
import socket
import struct
from collections.abc import Sequence
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.vtpm.keys import KeyType
from undercroft.securekernel.vtpm.launchlog import MAX_MEASURED, LaunchConfig
from undercroft.securekernel.vtpm.wire import HEADER, MAX_SIZE, Command

MAX_COMMANDS = 32
MAX_MESSAGE = 1024 * 1024
MAX_ANSWER = 64 * 1024 * 1024
"""Largest message to the multiplexer and largest answer (a log), in bytes."""
MAX_DATA = 64
"""Largest qualifyingData, in bytes: TPM2B_DATA holds a TPMT_HA at most."""
MAX_SELECTION = 256
_SIZE = struct.Struct(">I")
_CHUNK = 1 << 18


class Kind(enum.IntEnum):
    """What a request asks for."""

    BATCH = 1
    STATUS = 2
    KEYS = 3
    RECORD = 4
    LOG = 5
    LAUNCH = 6
    QUOTE = 7


class Reply(enum.IntEnum):
    """How a request ended."""

    OK = 0
    UNAVAILABLE = 1
    BUSY = 2
    MALFORMED = 3


@dataclass(frozen=True, slots=True)
class RawCommand:
    """A command of a batch as it came over the socket."""

    data: bytes
    patches: tuple[tuple[int, int], ...] = ()
    ends: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands to run in one slot at one locality."""

    locality: int
    commands: tuple[RawCommand, ...]

    @classmethod
    def of(cls, locality: int, commands: Sequence[Command]) -> Batch:
        """Return the batch of these commands."""
        return cls(
            locality, tuple(RawCommand(each.data, each.patches, each.ends) for each in commands)
        )


def encode_batch(locality: int, commands: Sequence[Command]) -> bytes:
    """Return the BATCH request of ``commands``."""
    out = bytearray(struct.pack(">BBB", Kind.BATCH, locality, len(commands)))
    for command in commands:
        out += _SIZE.pack(len(command.data)) + command.data
        out.append(len(command.patches))
        for offset, index in command.patches:
            out += struct.pack(">HB", offset, index)
        out.append(len(command.ends))
        out += bytes(command.ends)
    return bytes(out)


def parse_batch(body: bytes) -> Batch:
    """Parse a BATCH request without its kind byte.  Raises FormatError."""
    reader = BoundedReader(body, "vTPM batch", order="big")
    locality = reader.u8("locality")
    if locality > 4:
        raise reader.fail("no such locality", expected="0..4", got=locality)
    count = reader.u8("count")
    if not 1 <= count <= MAX_COMMANDS:
        raise reader.fail("count", expected=f"1..{MAX_COMMANDS}", got=count)
    commands = tuple(_parse_command(reader, number) for number in range(count))
    reader.finish()
    return Batch(locality, commands)


def _parse_command(reader: BoundedReader, number: int) -> RawCommand:
    data = reader.sized(4, "command", limit=MAX_SIZE)
    if len(data) < HEADER.size or HEADER.unpack_from(data)[1] != len(data):
        raise reader.fail("commandSize is not the size", got=len(data))
    patches = []
    for _ in range(reader.u8("patches")):
        offset, index = reader.u16("patch.offset"), reader.u8("patch.index")
        if index >= number or not HEADER.size <= offset <= len(data) - 4:
            raise reader.fail("a patch refers outside", got=f"offset {offset}, index {index}")
        patches.append((offset, index))
    ends = tuple(reader.sized(1, "ends"))
    if any(index >= number for index in ends):
        raise reader.fail("ends something later", got=list(ends))
    return RawCommand(data, tuple(patches), ends)


@dataclass(frozen=True, slots=True)
class Done:
    """A batch's responses, and which launch held, with a log of which size, while it ran."""

    launch: int
    log_size: int
    responses: tuple[bytes, ...]


def encode_done(done: Done) -> bytes:
    """Return the OK body of a batch."""
    responses = done.responses
    out = bytearray(struct.pack(">IIB", done.launch, done.log_size, len(responses)))
    for response in responses:
        out += _SIZE.pack(len(response)) + response
    return bytes(out)


def parse_done(body: bytes) -> Done:
    """Parse the OK body of a batch.  Raises FormatError."""
    reader = BoundedReader(body, "vTPM batch responses", order="big")
    launch, log_size = reader.u32("launch"), reader.u32("logSize")
    count = reader.u8("count")
    responses = tuple(reader.sized(4, "response", limit=MAX_SIZE) for _ in range(count))
    reader.finish()
    return Done(launch, log_size, responses)


def encode_named(name: str, data: bytes) -> bytes:
    """Return a name and bytes, as RECORD and LAUNCH carry them."""
    encoded = name.encode()
    return struct.pack(">H", len(encoded)) + encoded + _SIZE.pack(len(data)) + data


def parse_named(reader: BoundedReader, limit: int) -> tuple[str, bytes]:
    """Read a name and bytes.  A name is 1 to 64 printable ASCII characters."""
    encoded = reader.sized(2, "name", limit=64)
    name = encoded.decode("ascii", "replace")
    if not name or not name.isascii() or not name.isprintable():
        raise reader.fail("not a name", got=encoded.hex())
    return name, reader.sized(4, "data", limit=limit)


def encode_launch(config: LaunchConfig) -> bytes:
    """Return the body of a LAUNCH request."""
    out = _SIZE.pack(len(config.manifest)) + config.manifest
    out += bytes([len(config.identities)])
    return out + b"".join(encode_named(*identity) for identity in config.identities)


def parse_launch(reader: BoundedReader) -> LaunchConfig:
    """Parse the body of a LAUNCH request.  Raises FormatError."""
    manifest = reader.sized(4, "manifest", limit=MAX_MEASURED)
    count = reader.u8("count")
    identities = tuple(parse_named(reader, MAX_MEASURED) for _ in range(count))
    reader.finish()
    return LaunchConfig(manifest, identities)


KEY_NUMBERS = (KeyType.ECC, KeyType.RSA)


def encode_quote(key_type: KeyType, qualifying_data: bytes, selection: bytes) -> bytes:
    """Return the body of a QUOTE request."""
    head = struct.pack(">BH", KEY_NUMBERS.index(key_type), len(qualifying_data))
    return head + qualifying_data + selection


def parse_quote(reader: BoundedReader) -> tuple[KeyType, bytes, bytes]:
    """Parse the body of a QUOTE request.  Raises FormatError."""
    number = reader.u8("key")
    if number >= len(KEY_NUMBERS):
        raise reader.fail("no such key", expected="0 or 1", got=number)
    qualifying_data = reader.sized(2, "qualifyingData", limit=MAX_DATA)
    selection = reader.rest()
    if len(selection) > MAX_SELECTION:
        raise reader.fail("the selection is too large", expected=MAX_SELECTION)
    return KEY_NUMBERS[number], qualifying_data, selection


def send(peer: socket.socket, kind: int, body: bytes) -> None:
    """Send one message."""
    peer.sendall(_SIZE.pack(1 + len(body)) + bytes([kind]) + body)


def receive(peer: socket.socket, limit: int = MAX_MESSAGE) -> tuple[int, bytes] | None:
    """Receive one message as (kind, body); None at the end of the stream.

    One message is under way at a time, so whatever arrives belongs to it.  Raises FormatError
    for a size that is zero or too large and for a message that is cut short or too long.
    """
    data = peer.recv(_CHUNK)
    if not data:
        return None
    while len(data) < _SIZE.size:
        data += _more(peer, len(data), _SIZE.size)
    size = _SIZE.size + _SIZE.unpack_from(data)[0]
    if not _SIZE.size < size <= _SIZE.size + limit:
        raise FormatError("vTPM message", 0, "size", expected=f"1..{limit}", got=size)
    if len(data) < size:
        parts = [data]
        got = len(data)
        while got < size:
            parts.append(_more(peer, got, size))
            got += len(parts[-1])
        data = b"".join(parts)
    if len(data) > size:
        raise FormatError("vTPM message", size, "bytes are left over", got=len(data) - size)
    return data[4], data[5:]


def _more(peer: socket.socket, got: int, size: int) -> bytes:
    data = peer.recv(_CHUNK)
    if not data:
        raise FormatError("vTPM message", got, "cut short", expected=size, got=got)
    return data
