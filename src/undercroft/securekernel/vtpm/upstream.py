"""Our side of swtpm: its control channel, and a data channel of our own.

Every command carries its locality in front of it (the TCG "TPM2_SEND_COMMAND" header, which swtpm
understands since 0.2), so that no locality is ever left behind for the next command.
"""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from pathlib import Path

from undercroft.base import FormatError
from undercroft.securekernel.vtpm import control
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.wire import HEADER, MAX_SIZE

TPM2_SEND_COMMAND = 8
_PREFIX = struct.Struct(">IBI")
_SIZE = struct.Struct(">I")
_TRAILER = 4


class Upstream:
    """A connection to one swtpm.  ``execute`` and ``control`` may be called by any thread, but
    ``execute`` by one at a time: the arbiter sees to that.

    A peer that dies, stalls for ``timeout`` seconds or talks nonsense is closed, and from then on
    every call raises VtpmUnavailable with the first reason until :meth:`connect` succeeds.
    """

    def __init__(self, path: Path, *, timeout: float = 90.0) -> None:
        self.path = path
        self.timeout = timeout
        self.capabilities = 0
        self._dead = "not connected"
        self._control_lock = threading.Lock()
        self._control: socket.socket | None = None
        self._data: socket.socket | None = None

    @property
    def fault(self) -> str:
        """Why swtpm cannot be reached; empty while it can."""
        return self._dead

    def connect(self) -> None:
        """Connect, or connect again.  Raises VtpmUnavailable."""
        self.close()
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        control_socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            with theirs:
                control_socket.settimeout(min(self.timeout, 10.0))
                control_socket.connect(str(self.path))
                self.capabilities = self._probe(control_socket)
                control.send_with_fd(
                    control_socket, control.request(Control.SET_DATAFD), theirs.fileno()
                )
                reply = control.receive_response(control_socket, Control.SET_DATAFD)
                if control.result_code(reply) != control.TPM_SUCCESS:
                    raise control.ProtocolFault("SET_DATAFD was refused", got=reply.hex())
        except (OSError, FormatError) as fault:
            control_socket.close()
            ours.close()
            self._dead = f"cannot connect to swtpm at {self.path}: {fault}"
            raise VtpmUnavailable(self._dead, remedy="is swtpm running?") from fault
        control_socket.settimeout(self.timeout)
        ours.settimeout(self.timeout)
        self._control, self._data, self._dead = control_socket, ours, ""

    @staticmethod
    def _probe(peer: socket.socket) -> int:
        peer.sendall(control.request(Control.GET_CAPABILITY))
        reply = control.receive_response(peer, Control.GET_CAPABILITY)
        capabilities = int.from_bytes(reply[4:8], "big")
        needed = control.CAP_SET_DATAFD | control.CAP_SEND_COMMAND_HEADER
        if capabilities & needed != needed:
            raise control.ProtocolFault(
                "swtpm lacks a capability", expected=hex(needed), got=hex(capabilities)
            )
        return capabilities

    def close(self, reason: str = "closed") -> None:
        """Drop both channels; ``reason`` is what later calls report."""
        self._dead = reason
        for peer in (self._control, self._data):
            if peer is not None:
                with contextlib.suppress(OSError):
                    peer.shutdown(socket.SHUT_RDWR)
                peer.close()
        self._control = self._data = None

    def _lost(self, fault: Exception) -> VtpmUnavailable:
        if not self._dead:
            self.close(f"swtpm was lost: {fault or type(fault).__name__}")
        return VtpmUnavailable(self._dead)

    def control(self, request: bytes) -> bytes:
        """Send one control request, return the whole response.  Raises VtpmUnavailable."""
        with self._control_lock:
            peer = self._control
            if peer is None:
                raise VtpmUnavailable(self._dead)
            try:
                peer.sendall(request)
                return control.receive_response(peer, int.from_bytes(request[:4], "big"))
            except (OSError, FormatError) as fault:
                raise self._lost(fault) from fault

    def execute(self, command: bytes, locality: int) -> bytes:
        """Run one TPM command at ``locality``, return the response.  Raises VtpmUnavailable.

        A response that is malformed or larger than 4096 bytes counts as a lost swtpm.
        """
        peer = self._data
        if peer is None:
            raise VtpmUnavailable(self._dead)
        try:
            peer.sendall(_PREFIX.pack(TPM2_SEND_COMMAND, locality, len(command)) + command)
            return _receive_response(peer)
        except (OSError, FormatError) as fault:
            raise self._lost(fault) from fault


def _receive_response(peer: socket.socket) -> bytes:
    """Read size, response and the trailing acknowledgement."""
    data = peer.recv(2 * MAX_SIZE)
    size = -1
    while True:
        if not data:
            raise ConnectionResetError("swtpm closed the data channel")
        if len(data) >= _SIZE.size:
            (size,) = _SIZE.unpack_from(data)
            if not HEADER.size <= size <= MAX_SIZE:
                raise FormatError("TPM response", 0, "impossible size", got=size)
            if len(data) >= _SIZE.size + size + _TRAILER:
                break
        more = peer.recv(2 * MAX_SIZE)
        if not more:
            raise ConnectionResetError("swtpm closed the data channel")
        data += more
    response = data[_SIZE.size : _SIZE.size + size]
    if len(data) != _SIZE.size + size + _TRAILER or HEADER.unpack_from(response)[1] != size:
        raise FormatError("TPM response", 0, "sizes disagree", expected=size, got=len(data))
    return response
