"""swtpm's control protocol: message numbers and layouts, and reading one message from a stream.

Everything is big-endian.  A request is a 32-bit command number and a body; a response starts with
a 32-bit TPM_RESULT and, unless that is an error, goes on with the command's own fields.
Source: swtpm ``include/swtpm/tpm_ioctl.h`` and ``man/man3/swtpm_ioctls.3``.
"""

from __future__ import annotations

import array
import enum
import os
import socket
import struct
from dataclasses import dataclass

from undercroft.base import FormatError

MAX_STATE_BLOB = 512 * 1024
"""swtpm refuses a larger state blob (``ctrlchannel_receive_state``)."""

TPM_SUCCESS = 0x00
TPM_BAD_PARAMETER = 0x03
TPM_FAIL = 0x09
TPM_BAD_ORDINAL = 0x0A
TPM_IOERROR = 0x1F
TPM_BAD_LOCALITY = 0x3D

CAP_HASHING = 1 << 4
CAP_SET_DATAFD = 1 << 12
CAP_SEND_COMMAND_HEADER = 1 << 15

INIT_FLAG_DELETE_VOLATILE = 1


class Control(enum.IntEnum):
    """Control commands, by number."""

    GET_CAPABILITY = 0x01
    INIT = 0x02
    SHUTDOWN = 0x03
    GET_TPMESTABLISHED = 0x04
    SET_LOCALITY = 0x05
    HASH_START = 0x06
    HASH_DATA = 0x07
    HASH_END = 0x08
    CANCEL_TPM_CMD = 0x09
    STORE_VOLATILE = 0x0A
    RESET_TPMESTABLISHED = 0x0B
    GET_STATEBLOB = 0x0C
    SET_STATEBLOB = 0x0D
    STOP = 0x0E
    GET_CONFIG = 0x0F
    SET_DATAFD = 0x10
    SET_BUFFERSIZE = 0x11
    GET_INFO = 0x12
    LOCK_STORAGE = 0x13


_REQUEST_BODY: dict[int, tuple[int, int]] = {
    # Least and most bytes.  QEMU sends the union of request and response, so a one-byte
    # locality may come with three bytes of padding.
    Control.INIT: (4, 4),
    Control.SET_LOCALITY: (1, 4),
    Control.HASH_DATA: (4, 4),
    Control.RESET_TPMESTABLISHED: (1, 4),
    Control.GET_STATEBLOB: (12, 12),
    Control.SET_STATEBLOB: (12, 12),
    Control.SET_BUFFERSIZE: (4, 4),
    Control.GET_INFO: (16, 16),
    Control.LOCK_STORAGE: (4, 4),
}
_LENGTH_AT = {Control.HASH_DATA: 4, Control.SET_STATEBLOB: 12}
"""Where in these requests the length of the data that follows them stands."""

_RESPONSE_SIZE: dict[int, int] = {
    # Bytes after the result, where there are any.
    Control.GET_CAPABILITY: 4,
    Control.GET_TPMESTABLISHED: 4,
    Control.GET_CONFIG: 4,
    Control.SET_BUFFERSIZE: 12,
    Control.GET_STATEBLOB: 12,
    Control.GET_INFO: 8,
}


class ProtocolFault(FormatError):  # noqa: N818 - whose fault, not a bug
    """A peer that does not follow the control protocol; the connection cannot go on."""

    def __init__(self, reason: str, *, expected: object = "", got: object = "") -> None:
        super().__init__("swtpm control message", 0, reason, expected=expected, got=got)


@dataclass(frozen=True, slots=True)
class Request:
    """A control request as it came: its number, its whole bytes, and passed descriptors."""

    number: int
    data: bytes
    fds: tuple[int, ...] = ()

    @property
    def body(self) -> bytes:
        """What follows the number."""
        return self.data[4:]


def request(number: Control, body: bytes = b"") -> bytes:
    """Return a control request's bytes."""
    return struct.pack(">I", number) + body


def result(code: int, fields: bytes = b"") -> bytes:
    """Return a control response's bytes."""
    return struct.pack(">I", code) + fields


def padded(number: int, response: bytes) -> bytes:
    """Return the response with all its fields, zero where there are none.

    swtpm answers an error with the bare result, but QEMU reads the whole response whatever the
    result is, and would wait for ever.
    """
    return response.ljust(4 + _RESPONSE_SIZE.get(number, 0), b"\0")


def result_code(response: bytes) -> int:
    """Return the TPM_RESULT of a complete response."""
    (code,) = struct.unpack_from(">I", response)
    return int(code)


def _needed(data: bytes) -> tuple[int, int]:
    """Return how many bytes a request that starts with ``data`` has, at least and at most."""
    if len(data) < 4:
        return 4, 4 + 16
    number = int.from_bytes(data[:4], "big")
    least, most = _REQUEST_BODY.get(number, (0, 0))
    least, most = least + 4, most + 4
    if number in _LENGTH_AT and len(data) >= least:
        at = _LENGTH_AT[Control(number)]
        length = int.from_bytes(data[at : at + 4], "big")
        if length > MAX_STATE_BLOB:
            raise ProtocolFault(
                "the data is too large", expected=f"at most {MAX_STATE_BLOB}", got=length
            )
        return least + length, most + length
    return least, most


def receive_request(peer: socket.socket, *, rest_timeout: float = 2.0) -> Request | None:
    """Read one request; None at the end of the stream.

    Waits for the first byte without limit, then for the rest at most ``rest_timeout`` seconds.
    Raises ProtocolFault for a request that is cut short, too long or too large; passed
    descriptors are closed then.  The protocol is strictly request and response, so whatever
    arrives in one go belongs to one request.
    """
    peer.settimeout(None)
    try:
        data, fds = _receive(peer, 8192)
    except ConnectionError:
        return None
    try:
        while True:
            least, most = _needed(data)
            if len(data) > most and len(data) >= 4:
                raise ProtocolFault("bytes are left over", expected=most, got=len(data))
            if len(data) >= max(least, 4):
                return Request(int.from_bytes(data[:4], "big"), data, tuple(fds))
            if not data:
                _close(fds)
                return None
            peer.settimeout(rest_timeout)
            more, more_fds = _receive(peer, min(65536, least - len(data)))
            fds += more_fds
            if not more:
                raise ProtocolFault("cut short", expected=least, got=len(data))
            data += more
    except (OSError, ProtocolFault) as fault:
        _close(fds)
        if isinstance(fault, ProtocolFault):
            raise
        raise ProtocolFault("cut short", got=str(fault)) from fault


def receive_response(peer: socket.socket, number: int) -> bytes:
    """Read the response to request ``number``; the caller has set the socket's timeout.

    Raises ProtocolFault for a malformed response and OSError for a dead or silent peer.
    """
    data = _more(peer, b"", 4)
    code = result_code(data)
    size = 4 + _RESPONSE_SIZE.get(number, 0)
    # An error is the bare result, but for a state blob that could not be had: both come in one
    # write, so that what arrived with the result is the response.
    if code != TPM_SUCCESS and len(data) == 4:
        return data
    data = _more(peer, data, size)
    if number == Control.GET_STATEBLOB:
        size += int.from_bytes(data[12:16], "big") if code == TPM_SUCCESS else 0
    elif number == Control.GET_INFO:
        size += int.from_bytes(data[8:12], "big")
    if size > MAX_STATE_BLOB + 16:
        raise ProtocolFault("a response is too large", expected=MAX_STATE_BLOB, got=size)
    data = _more(peer, data, size)
    if len(data) > size:
        raise ProtocolFault("a response is too long", expected=size, got=len(data))
    return data


def send_with_fd(peer: socket.socket, data: bytes, fd: int) -> None:
    """Send ``data`` with one descriptor beside it."""
    rights = array.array("i", [fd])
    peer.sendmsg([data], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])


def _more(peer: socket.socket, data: bytes, size: int) -> bytes:
    while len(data) < size:
        chunk = peer.recv(65536)
        if not chunk:
            raise ConnectionResetError("the peer closed the control channel")
        data += chunk
    return data


def _receive(peer: socket.socket, size: int) -> tuple[bytes, list[int]]:
    data, ancillary, _, _ = peer.recvmsg(size, socket.CMSG_SPACE(4 * 4))
    fds: list[int] = []
    for level, kind, payload in ancillary:
        if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
            numbers = array.array("i")
            numbers.frombytes(payload[: len(payload) - len(payload) % numbers.itemsize])
            fds += numbers
    return data, fds


def _close(fds: list[int]) -> None:
    for fd in fds:
        os.close(fd)
