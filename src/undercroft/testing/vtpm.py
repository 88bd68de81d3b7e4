"""A hypervisor's side of a TPM emulator, and swtpm processes, for tests and benchmarks.

Nothing here is fake: the swtpm is real, and what speaks to it speaks as QEMU does.
"""

from __future__ import annotations

import contextlib
import shlex
import shutil
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests.tpm import is_listening
from undercroft.securekernel.vtpm import commands, control
from undercroft.securekernel.vtpm.batch import LOADED_SESSION_FIRST, TRANSIENT_FIRST
from undercroft.securekernel.vtpm.control import Control

STARTUP_CLEAR = bytes.fromhex("80010000000c000001440000")

_RELAY = """
import os, socket, sys
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[-1])
while command := os.read(0, 4096):
    peer.sendall(command)
    response = peer.recv(8192)
    while len(response) < int.from_bytes(response[2:6], "big"):
        response += peer.recv(8192)
    os.write(1, response)
"""


def wait_for(path: Path, seconds: float = 10.0) -> None:
    """Wait until ``path`` exists and, if it is a socket, is listened on.  EnvironmentFault."""
    deadline = time.monotonic() + seconds
    while not path.exists() or (path.is_socket() and not is_listening(path)):
        if time.monotonic() > deadline:
            raise EnvironmentFault("did not appear in time", where=str(path))
        time.sleep(0.01)


class SwtpmProcess:
    """A TPM in ``folder``: manufactured there, or ``like`` another one, and running."""

    def __init__(
        self, folder: Path, *, like: SwtpmProcess | None = None, banks: str = "sha1,sha256,sha384"
    ) -> None:
        self.state = folder / "tpm"
        self.path = folder / "swtpm.sock"
        self.log = folder / "swtpm.log"
        self._process: subprocess.Popen[bytes] | None = None
        if like is not None:
            shutil.copytree(like.state, self.state, ignore=shutil.ignore_patterns(".lock"))
        else:
            self.state.mkdir()
            self._manufacture(folder, banks)
        self.start()

    def _manufacture(self, folder: Path, banks: str) -> None:
        authority = folder / "ca"
        authority.mkdir()
        (folder / "localca.conf").write_text(
            f"statedir = {authority}\nsigningkey = {authority}/signkey.pem\n"
            f"issuercert = {authority}/issuercert.pem\ncertserial = {authority}/certserial\n"
        )
        (folder / "options").write_text(
            "--platform-manufacturer undercroft\n--platform-version 1\n--platform-model test\n"
        )
        (folder / "setup.conf").write_text(
            f"create_certs_tool = /usr/bin/swtpm_localca\n"
            f"create_certs_tool_config = {folder}/localca.conf\n"
            f"create_certs_tool_options = {folder}/options\n"
        )
        command = [
            "swtpm_setup", "--tpm2", "--tpmstate", str(self.state), "--create-ek-cert",
            "--config", str(folder / "setup.conf"), "--pcr-banks", banks, "--overwrite",
        ]  # fmt: skip
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, check=False,
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        if done.returncode:
            raise EnvironmentFault("swtpm_setup failed", got=done.stdout + done.stderr)

    def start(self) -> None:
        """Start it, or start it again over the same state."""
        self.path.unlink(missing_ok=True)
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                [
                    "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={self.state}",
                    "--ctrl", f"type=unixio,path={self.path}",
                ],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
            )  # fmt: skip
        wait_for(self.path)

    @property
    def pid(self) -> int:
        """The process that runs now."""
        assert self._process is not None
        return self._process.pid

    def stop(self) -> None:
        """End it at once."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()


class HypervisorSide:
    """A connection as QEMU's TPM emulator back end makes it.

    ``lock`` lets one command at a time onto the data channel: a relay may share it.
    """

    def __init__(self, path: Path, *, timeout: float = 20.0) -> None:
        self.lock = threading.Lock()
        self._control = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._control.settimeout(timeout)
        self._control.connect(str(path))
        self._data, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        self._data.settimeout(timeout)
        with theirs:
            request = control.request(Control.SET_DATAFD)
            control.send_with_fd(self._control, request, theirs.fileno())
        self._check(control.receive_response(self._control, Control.SET_DATAFD))

    @staticmethod
    def _check(response: bytes) -> bytes:
        # TPM_NON_FATAL: there is no such state blob, which is no failure (QEMU takes it so, too)
        if control.result_code(response) & ~0x800 != control.TPM_SUCCESS:
            raise EnvironmentFault("the control request was refused", got=response.hex())
        return response

    def ask(self, number: Control, body: bytes = b"") -> bytes:
        """Send a control request; return its response's fields.  EnvironmentFault if refused."""
        self._control.sendall(control.request(number, body))
        return self._check(control.receive_response(self._control, number))[4:]

    def power_on(self, *, startup: bool = True, flags: int = 0) -> None:
        """STOP, SET_BUFFERSIZE and INIT as at power-on and reset, then firmware's TPM2_Startup."""
        self.ask(Control.STOP)
        self.ask(Control.SET_BUFFERSIZE, (4096).to_bytes(4, "big"))
        self.ask(Control.INIT, flags.to_bytes(4, "big"))
        if startup and self.command(STARTUP_CLEAR)[6:10] != bytes(4):
            raise EnvironmentFault("TPM2_Startup failed")

    def command(self, data: bytes) -> bytes:
        """Send one TPM command, return the response."""
        with self.lock:
            self._data.sendall(data)
            response = self._data.recv(8192)
            while len(response) < 10 or len(response) < int.from_bytes(response[2:6], "big"):
                more = self._data.recv(8192)
                if not more:
                    raise EnvironmentFault("the data channel was closed")
                response += more
            return response

    def close(self) -> None:
        """Hang up, as a hypervisor that was killed does."""
        self._data.close()
        self._control.close()


class MultiplexerProcess:
    """The multiplexer as its own process in front of ``swtpm``, with its sockets in ``folder``."""

    def __init__(self, folder: Path, swtpm: SwtpmProcess, *options: str) -> None:
        self.listen, self.kernel = folder / "qemu.sock", folder / "kernel.sock"
        pid_file = folder / "mux.pid"
        self._process = subprocess.Popen(
            [
                sys.executable, "-m", "undercroft.securekernel.vtpm",
                "--upstream", str(swtpm.path), "--listen", str(self.listen),
                "--control", str(self.kernel), "--pidfile", str(pid_file), *options,
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(pid_file)

    @property
    def pid(self) -> int:
        """The process."""
        return self._process.pid

    def stop(self) -> int:
        """End it and return its exit status."""
        self._process.terminate()
        return self._process.wait(10)


class ToolRelay:
    """Lets tpm2-tools speak through a :class:`HypervisorSide`: see :attr:`tcti`.

    With ``managed`` it does the most of what a resource manager does: what programs leave loaded
    when the last of them ends is flushed before the next may speak.
    """

    def __init__(self, hypervisor: HypervisorSide, path: Path, *, managed: bool = False) -> None:
        self._hypervisor = hypervisor
        self._managed = managed
        self.commands = 0
        self._programs = 0
        self._lock = threading.Lock()
        self._path = path
        self._program = path.with_name(path.name + ".py")
        self._program.write_text(f"#!{sys.executable} -ESs\n{_RELAY}")
        self._program.chmod(0o700)
        self._server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._server.bind(str(path))
        self._server.listen(16)
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def tcti(self) -> str:
        """The value for TPM2TOOLS_TCTI, and for every other program that takes a TCTI."""
        return f"cmd:exec {shlex.quote(str(self._program))} {shlex.quote(str(self._path))}"

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                peer, _ = self._server.accept()
                with self._lock:
                    self._programs += 1
                threading.Thread(target=self._relay, args=(peer,), daemon=True).start()

    def _relay(self, peer: socket.socket) -> None:
        with peer, contextlib.suppress(OSError, EnvironmentFault):
            while command := peer.recv(8192):
                self.commands += 1
                peer.sendall(self._hypervisor.command(command))
        with self._lock, contextlib.suppress(OSError, EnvironmentFault):
            self._programs -= 1
            if self._managed and self._programs == 0:
                flush_loaded(self._hypervisor)

    def close(self) -> None:
        """Take no more connections."""
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


def flush_loaded(hypervisor: HypervisorSide) -> None:
    """Flush every transient object and every loaded session."""
    for first in (TRANSIENT_FIRST, LOADED_SESSION_FIRST):
        ask = commands.get_handles(first)
        for handle in commands.parse_get_handles(ask, hypervisor.command(ask.data)):
            hypervisor.command(commands.flush_context(handle).data)
