"""The multiplexer's sockets: QEMU on one side, the secure kernel on the other.

QEMU's TPM emulator back end connects to the control socket, passes one end of a socket pair with
SET_DATAFD and sends the guest's commands through that, one at a time.  One QEMU at a time: when
it goes, the next may come.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import threading
from dataclasses import dataclass, field
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.reader import BoundedReader
from undercroft.securekernel.vtpm import control, protocol
from undercroft.securekernel.vtpm.arbiter import Busy
from undercroft.securekernel.vtpm.batch import StateLost
from undercroft.securekernel.vtpm.control import Control, Request
from undercroft.securekernel.vtpm.launchlog import MAX_MEASURED
from undercroft.securekernel.vtpm.multiplexer import Multiplexer
from undercroft.securekernel.vtpm.wire import HEADER, MAX_SIZE

MAX_CLIENTS = 4
"""Connections of the secure kernel that are served at once."""

_REST_OF_COMMAND = 0.25
"""How long the rest of a guest command that came in pieces may take, in seconds."""


def listen(path: Path) -> socket.socket:
    """Listen on a unix socket that only its owner can reach.

    A socket that nobody listens on any more is replaced.  Raises EnvironmentFault.
    """
    if path.is_socket():
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
            try:
                probe.connect(str(path))
            except OSError:
                path.unlink(missing_ok=True)
            else:
                raise EnvironmentFault("somebody already listens here", where=str(path))
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    mask = os.umask(0o177)
    try:
        server.bind(str(path))
    except OSError as fault:
        server.close()
        raise EnvironmentFault(f"cannot listen: {fault}", where=str(path)) from fault
    finally:
        os.umask(mask)
    server.listen(MAX_CLIENTS)
    return server


@dataclass(slots=True)
class Interposer:
    """Serves a multiplexer on two listening sockets until :meth:`stop`.

    ``until_guest_leaves`` ends the service when the hypervisor disconnects after SHUTDOWN.
    """

    multiplexer: Multiplexer
    guest_server: socket.socket
    kernel_server: socket.socket
    until_guest_leaves: bool = False
    _stopped: threading.Event = field(default_factory=threading.Event)
    _open: set[socket.socket] = field(default_factory=set)
    _clients: int = 0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> None:
        """Serve in threads of our own."""
        for target in (self._serve_guests, self._serve_kernels):
            threading.Thread(target=target, daemon=True, name=target.__name__).start()

    def wait(self) -> None:
        """Return when the service has ended."""
        self._stopped.wait()

    def stop(self) -> None:
        """End the service and close every connection."""
        self._stopped.set()
        with self._lock:
            peers = [*self._open, self.guest_server, self.kernel_server]
        for peer in peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
        self.guest_server.close()
        self.kernel_server.close()

    def _accept(self, server: socket.socket) -> socket.socket | None:
        try:
            peer, _ = server.accept()
        except OSError:
            self._stopped.set()
            return None
        self._keep(peer)
        return peer

    def _keep(self, peer: socket.socket) -> None:
        with self._lock:
            self._open.add(peer)

    def _drop(self, peer: socket.socket) -> None:
        with self._lock:
            self._open.discard(peer)
        # Closing alone does not wake a thread that reads from it.
        with contextlib.suppress(OSError):
            peer.shutdown(socket.SHUT_RDWR)
        peer.close()

    # --- the hypervisor ---------------------------------------------------------------------

    def _serve_guests(self) -> None:
        while (peer := self._accept(self.guest_server)) is not None:
            self.multiplexer.hypervisor.connected()
            _Hypervisor(self, peer).serve()
            self.multiplexer.note("the hypervisor disconnected")
            if self.until_guest_leaves:
                self._stopped.set()
                return

    # --- the secure kernel --------------------------------------------------------------------

    def _serve_kernels(self) -> None:
        while (peer := self._accept(self.kernel_server)) is not None:
            with self._lock:
                admitted = self._clients < MAX_CLIENTS
                self._clients += admitted
            if not admitted:
                self._drop(peer)
                continue
            threading.Thread(target=self._serve_kernel, args=(peer,), daemon=True).start()

    def _serve_kernel(self, peer: socket.socket) -> None:
        try:
            while (message := protocol.receive(peer)) is not None:
                protocol.send(peer, *self._answer(*message))
        except (OSError, FormatError) as fault:
            self.multiplexer.note(f"a secure kernel connection broke: {fault}")
        finally:
            with self._lock:
                self._clients -= 1
            self._drop(peer)

    def _answer(self, kind: int, body: bytes) -> tuple[int, bytes]:
        request = BoundedReader(body, "vTPM request", order="big")
        try:
            return protocol.Reply.OK, self._perform(kind, request)
        except FormatError as fault:
            return protocol.Reply.MALFORMED, str(fault).encode()
        except Busy as fault:
            return protocol.Reply.BUSY, str(fault).encode()
        except (EnvironmentFault, StateLost) as fault:
            return protocol.Reply.UNAVAILABLE, str(fault).encode()

    def _perform(self, kind: int, body: BoundedReader) -> bytes:
        kernel = self.multiplexer.kernel
        match kind:
            case protocol.Kind.BATCH:
                return protocol.encode_done(kernel.run_batch(protocol.parse_batch(body.data)))
            case protocol.Kind.QUOTE:
                return protocol.encode_done(kernel.quote(*protocol.parse_quote(body)))
            case protocol.Kind.STATUS:
                body.finish()
                return json.dumps(self.multiplexer.status()).encode()
            case protocol.Kind.KEYS:
                body.finish()
                return json.dumps(kernel.keys()).encode()
            case protocol.Kind.RECORD:
                name, data = protocol.parse_named(body, MAX_MEASURED)
                body.finish()
                kernel.record(name, data)
                return b""
            case protocol.Kind.LOG:
                number = body.u32("launch")
                body.finish()
                return kernel.log(number)
            case protocol.Kind.LAUNCH:
                kernel.launch(protocol.parse_launch(body))
                return b""
            case _:
                raise body.fail("unknown request", got=kind)


@dataclass(slots=True)
class _Hypervisor:
    """One connection of a hypervisor: its control channel and the data channel it passes."""

    owner: Interposer
    peer: socket.socket
    data: socket.socket | None = None

    def serve(self) -> None:
        """Answer control requests until the hypervisor goes or breaks the protocol."""
        try:
            while (request := control.receive_request(self.peer)) is not None:
                self.peer.sendall(self._answer(request))
        except control.ProtocolFault as fault:
            self.owner.multiplexer.counters.refused_control += 1
            self.owner.multiplexer.note(f"control channel: {fault}")
            with contextlib.suppress(OSError):
                self.peer.sendall(control.result(control.TPM_BAD_PARAMETER))
        except OSError as fault:
            self.owner.multiplexer.note(f"control channel: {fault}")
        finally:
            self._close_data()
            self.owner._drop(self.peer)

    def _answer(self, request: Request) -> bytes:
        if request.number == Control.SET_DATAFD:
            return self._set_data_fd(request.fds)
        for fd in request.fds:
            os.close(fd)
        return self.owner.multiplexer.hypervisor.request(request)

    def _set_data_fd(self, fds: tuple[int, ...]) -> bytes:
        peers = []
        for fd in fds:
            try:
                peers.append(socket.socket(fileno=fd))
            except OSError:  # not a socket
                os.close(fd)
        if len(peers) != 1 or len(fds) != 1:
            for peer in peers:
                peer.close()
            return control.result(control.TPM_BAD_PARAMETER)
        self._close_data()
        self.data = peers[0]
        self.owner._keep(self.data)
        threading.Thread(target=self._forward, args=(self.data,), daemon=True).start()
        return control.result(control.TPM_SUCCESS)

    def _close_data(self) -> None:
        if self.data is not None:
            self.owner._drop(self.data)
            self.data = None

    def _forward(self, peer: socket.socket) -> None:
        """Pass the guest's commands on, one at a time, until the data channel closes."""
        guest_command = self.owner.multiplexer.guest.command
        try:
            while command := receive_command(peer):
                peer.sendall(guest_command(command))
        except OSError as fault:
            self.owner.multiplexer.note(f"data channel: {fault}")


def receive_command(peer: socket.socket) -> bytes:
    """Return one command as the hypervisor sent it, empty at the end of the stream.

    The hypervisor sends what the guest has put into the TPM's registers, in one piece, and waits
    for the response.  The size in the header is the guest's word: where fewer bytes came, we wait
    a moment for the rest and then take what is there (the TPM answers TPM_RC_COMMAND_SIZE); where
    more came, we keep them (the TPM does the same).
    """
    try:
        command = peer.recv(2 * MAX_SIZE)
        while command and len(command) < _announced(command):
            peer.settimeout(_REST_OF_COMMAND)
            more = peer.recv(2 * MAX_SIZE)
            if not more:
                break
            command += more
    except TimeoutError:
        pass
    except ConnectionError:
        return b""
    finally:
        if peer.fileno() >= 0 and peer.gettimeout() is not None:
            peer.settimeout(None)
    return command


def _announced(command: bytes) -> int:
    if len(command) < HEADER.size:
        return HEADER.size
    size = int(HEADER.unpack_from(command)[1])
    return size if size <= MAX_SIZE else 0
