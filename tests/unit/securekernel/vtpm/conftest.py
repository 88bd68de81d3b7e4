"""A scripted swtpm: real sockets, a control channel, a passed data channel, chosen answers."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft.securekernel.vtpm import control
from undercroft.securekernel.vtpm.control import Control
from undercroft.securekernel.vtpm.interposer import Interposer, listen
from undercroft.securekernel.vtpm.multiplexer import Multiplexer
from undercroft.securekernel.vtpm.upstream import Upstream
from undercroft.securekernel.vtpm.wire import HEADER

STARTUP_CLEAR = bytes.fromhex("8001 0000000c 00000144 0000")
OK = HEADER.pack(0x8001, 10, 0)


def reply(body: bytes = b"", rc: int = 0) -> bytes:
    return HEADER.pack(0x8001, HEADER.size + len(body), rc) + body


class FakeSwtpm:
    """``answer(locality, command)`` gives the response, or None to say nothing at all.

    ``start_answers`` go before it, by command code: what the multiplexer itself asks at a start
    (no key can be made).  ``raw`` replaces the framed response by any bytes.  What came in is in
    ``commands`` (locality, command) and ``controls`` (whole requests).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.answer: Callable[[int, bytes], bytes | None] = lambda *_: OK
        self.start_answers = {0x144: OK, 0x131: reply(rc=0x9A2)}
        self.raw: Callable[[bytes], bytes] | None = None
        self.control_answer: Callable[[bytes], bytes | None] = self.default_control
        self.capabilities = 0xFFFF
        self.commands: list[tuple[int, bytes]] = []
        self.controls: list[bytes] = []
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(1)
        self._peers: list[socket.socket] = []
        threading.Thread(target=self._serve, daemon=True).start()

    def default_control(self, request: bytes) -> bytes:
        number = int.from_bytes(request[:4], "big")
        sizes = {Control.GET_TPMESTABLISHED: 4, Control.GET_CONFIG: 4, Control.SET_BUFFERSIZE: 12}
        if number == Control.GET_CAPABILITY:
            return struct.pack(">II", 0, self.capabilities)
        if number == Control.GET_STATEBLOB:
            return struct.pack(">IIII", 0, 0, 5, 5) + b"state"
        return bytes(4 + sizes.get(Control(number), 0))

    def _serve(self) -> None:
        with contextlib.suppress(OSError, control.ProtocolFault):
            while True:
                peer, _ = self._server.accept()
                self._peers.append(peer)
                while (request := control.receive_request(peer)) is not None:
                    self.controls.append(request.data)
                    for fd in request.fds:
                        data = socket.socket(fileno=fd)
                        self._peers.append(data)
                        threading.Thread(target=self._data, args=(data,), daemon=True).start()
                    answer = self.control_answer(request.data)
                    if answer is not None:
                        peer.sendall(answer)

    def _data(self, peer: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while message := peer.recv(9 + 4096):
                _, locality, _ = struct.unpack_from(">IBI", message)
                command = message[9:]
                self.commands.append((locality, command))
                scripted = self.start_answers.get(int.from_bytes(command[6:10], "big"))
                answer = scripted if scripted is not None else self.answer(locality, command)
                if answer is None:
                    continue
                framed = struct.pack(">I", len(answer)) + answer + bytes(4)
                peer.sendall(self.raw(answer) if self.raw is not None else framed)

    def die(self) -> None:
        """Close every connection; nobody listens any more."""
        self._server.close()
        self.path.unlink(missing_ok=True)
        for peer in self._peers:
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_RDWR)
            peer.close()
        self._peers.clear()


class FakeQemu:
    """The hypervisor's side: a control connection and the data channel it has passed."""

    def __init__(self, path: Path) -> None:
        self.control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.control.settimeout(5)
        self.control.connect(str(path))
        self.data: socket.socket | None = None

    def pass_data_fd(self) -> bytes:
        ours, theirs = socket.socketpair()
        with theirs:
            control.send_with_fd(self.control, control.request(Control.SET_DATAFD), theirs.fileno())
        ours.settimeout(5)
        self.data = ours
        return self.control.recv(4096)

    def ask(self, number: Control, body: bytes = b"") -> bytes:
        self.control.sendall(control.request(number, body))
        return self.control.recv(4096)

    def command(self, data: bytes) -> bytes:
        assert self.data is not None
        self.data.sendall(data)
        return self.data.recv(8192)

    def close(self) -> None:
        self.control.close()
        if self.data is not None:
            self.data.close()


class Rig:
    """A fake swtpm, a multiplexer in front of it, its two sockets, and hypervisors at will."""

    def __init__(self, folder: Path, *, stall: float = 5.0) -> None:
        self.swtpm = FakeSwtpm(folder / "swtpm")
        self.upstream = Upstream(folder / "swtpm", timeout=stall)
        self.upstream.connect()
        self.multiplexer = Multiplexer(self.upstream)
        self.qemu_path, self.kernel_path = folder / "qemu", folder / "kernel"
        self.interposer = Interposer(
            self.multiplexer, listen(self.qemu_path), listen(self.kernel_path)
        )
        self.interposer.start()
        self.qemus: list[FakeQemu] = []

    def qemu(self, *, started: bool = True) -> FakeQemu:
        qemu = FakeQemu(self.qemu_path)
        self.qemus.append(qemu)
        if started:
            assert qemu.pass_data_fd() == bytes(4)
            self.start(qemu)
        return qemu

    def start(self, qemu: FakeQemu) -> None:
        """Power on or reset, and what firmware does first; then forget what went by."""
        assert qemu.ask(Control.INIT, bytes(4)) == bytes(4)
        assert qemu.command(STARTUP_CLEAR) == OK
        self.swtpm.commands.clear()

    def close(self) -> None:
        for qemu in self.qemus:
            qemu.close()
        self.interposer.stop()
        self.upstream.close()
        self.swtpm.die()


@pytest.fixture
def swtpm(tmp_path: Path) -> Iterator[FakeSwtpm]:
    fake = FakeSwtpm(tmp_path / "swtpm")
    yield fake
    fake.die()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path)
    yield rig
    rig.close()


@pytest.fixture
def stalling_rig(tmp_path: Path) -> Iterator[Rig]:
    rig = Rig(tmp_path, stall=0.2)
    yield rig
    rig.close()
