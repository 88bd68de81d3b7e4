"""The secure kernel's socket at the multiplexer: one batch of TPM commands in, responses out.

A message is a 32-bit big-endian size and that many bytes; the first byte is the kind.  Requests:

====== ======= ==========================================================================
kind   name    body
====== ======= ==========================================================================
1      BATCH   u8 locality, u8 count, then for each command: u32 size, bytes,
               u8 patches, for each u16 offset and u8 index (see wire.Command)
2      STATUS  nothing
====== ======= ==========================================================================

Responses: 0 OK (a batch: u8 count, for each u32 size and response; a status: JSON), 1 UNAVAILABLE
(swtpm cannot be reached), 2 BUSY, 3 MALFORMED; the last three carry a text.

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
from undercroft.securekernel.vtpm.wire import HEADER, MAX_SIZE, Command

MAX_COMMANDS = 32
MAX_MESSAGE = MAX_COMMANDS * (MAX_SIZE + 64)
_SIZE = struct.Struct(">I")


class Kind(enum.IntEnum):
    """What a request asks for."""

    BATCH = 1
    STATUS = 2


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


@dataclass(frozen=True, slots=True)
class Batch:
    """Commands to run in one slot at one locality."""

    locality: int
    commands: tuple[RawCommand, ...]


def encode_batch(locality: int, commands: Sequence[Command]) -> bytes:
    """Return the BATCH request of ``commands``."""
    out = bytearray(struct.pack(">BBB", Kind.BATCH, locality, len(commands)))
    for command in commands:
        out += _SIZE.pack(len(command.data)) + command.data
        out.append(len(command.patches))
        for offset, index in command.patches:
            out += struct.pack(">HB", offset, index)
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
    return RawCommand(data, tuple(patches))


def encode_responses(responses: Sequence[bytes]) -> bytes:
    """Return the OK body of a batch."""
    out = bytearray([len(responses)])
    for response in responses:
        out += _SIZE.pack(len(response)) + response
    return bytes(out)


def parse_responses(body: bytes) -> list[bytes]:
    """Parse the OK body of a batch.  Raises FormatError."""
    reader = BoundedReader(body, "vTPM batch responses", order="big")
    count = reader.u8("count")
    responses = [reader.sized(4, "response", limit=MAX_SIZE) for _ in range(count)]
    reader.finish()
    return responses


def send(peer: socket.socket, kind: int, body: bytes) -> None:
    """Send one message."""
    peer.sendall(_SIZE.pack(1 + len(body)) + bytes([kind]) + body)


def receive(peer: socket.socket) -> tuple[int, bytes] | None:
    """Receive one message as (kind, body); None at the end of the stream.

    Raises FormatError for a size that is zero or too large or a message that is cut short.
    """
    head = _exactly(peer, _SIZE.size, may_end=True)
    if head is None:
        return None
    (size,) = _SIZE.unpack(head)
    if not 1 <= size <= MAX_MESSAGE:
        raise FormatError("vTPM message", 0, "size", expected=f"1..{MAX_MESSAGE}", got=size)
    message = _exactly(peer, size, may_end=False)
    assert message is not None
    return message[0], message[1:]


def _exactly(peer: socket.socket, size: int, *, may_end: bool) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = peer.recv(min(65536, size - len(data)))
        if not chunk:
            if may_end and not data:
                return None
            raise FormatError("vTPM message", len(data), "cut short", expected=size, got=len(data))
        data += chunk
    return data
