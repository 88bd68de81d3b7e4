"""A client for QEMU's machine protocol (docs/interop/qmp-spec.txt in the QEMU source).

Small and bounded: one connection, one command at a time, one deadline for each.
"""

from __future__ import annotations

import array
import json
import select
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from undercroft.base import EnvironmentFault, JsonValue
from undercroft.securekernel.guest import GuestGone

MAX_MESSAGE = 16 << 20
"""The largest message we take; ``info mtree -f`` of a large machine is well under 1 MiB."""


class QmpError(EnvironmentFault):
    """QEMU refused a command.  ``error_class`` is its own word for why (``GenericError``)."""

    def __init__(self, command: str, error_class: str, description: str) -> None:
        self.command = command
        self.error_class = error_class
        super().__init__(f"QEMU refused {command}: {description}", where="qmp")


class QmpClient:
    """A connected QMP session.  Use as a context manager; not for several threads.

    A QMP socket serves one client at a time, so keep sessions short.  ``timeout`` is in seconds
    and holds for each command.  Raises GuestGone if nobody listens any more.
    """

    def __init__(self, path: Path, *, timeout: float = 10.0) -> None:
        self.path = path
        self._timeout = timeout
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            self._connect()
        except BaseException:
            self._socket.close()
            raise

    def _connect(self) -> None:
        deadline = time.monotonic() + self._timeout
        self._socket.settimeout(self._timeout)
        try:
            self._socket.connect(str(self.path))
        except FileNotFoundError as error:
            raise GuestGone(
                "there is no QMP socket", where=str(self.path), remedy="is the guest running?"
            ) from error
        except ConnectionRefusedError as error:
            raise GuestGone(
                "nobody listens on the QMP socket", where=str(self.path), remedy="start the guest"
            ) from error
        except OSError as error:
            raise EnvironmentFault(
                f"cannot connect: {error.strerror or error}", where=str(self.path)
            ) from error
        try:
            greeting = self._receive(deadline)
        except TimeoutError as error:
            raise EnvironmentFault(
                "no greeting: another client may hold this monitor",
                where=str(self.path),
                remedy="close the other client, or give QEMU a second -qmp socket",
            ) from error
        if "QMP" not in greeting:
            raise EnvironmentFault("this is not a QMP socket", where=str(self.path))
        self.execute("qmp_capabilities")

    @property
    def peer_pid(self) -> int:
        """The process that listens on the socket (SO_PEERCRED)."""
        credentials = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
        return array.array("i", credentials)[0]

    def execute(
        self,
        command: str,
        arguments: Mapping[str, JsonValue] | None = None,
        *,
        descriptor: int | None = None,
    ) -> JsonValue:
        """Run one command and return what it returned; ``descriptor`` is passed along.

        Raises QmpError if QEMU refuses, GuestGone if the connection ends, EnvironmentFault if
        there is no answer in time.  Events that arrive meanwhile are dropped.
        """
        deadline = time.monotonic() + self._timeout
        request: dict[str, JsonValue] = {"execute": command}
        if arguments:
            request["arguments"] = dict(arguments)
        try:
            self._send(json.dumps(request).encode() + b"\n", descriptor)
            while True:
                reply = self._receive(deadline)
                if "return" in reply:
                    return reply["return"]
                error = reply.get("error")
                if isinstance(error, dict):
                    raise QmpError(command, str(error.get("class")), str(error.get("desc")))
        except TimeoutError as error:
            raise EnvironmentFault(
                f"QEMU did not answer {command} in {self._timeout:g} s", where=str(self.path)
            ) from error

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    def next_event(self, timeout: float) -> dict[str, JsonValue] | None:
        """Return the next event, or None if none came within ``timeout`` seconds."""
        deadline = time.monotonic() + timeout
        if timeout <= 0 and b"\n" not in self._buffer:
            readable, _, _ = select.select([self._socket], [], [], 0)
            if not readable:
                return None
            deadline = time.monotonic() + self._timeout  # the rest of a message is on its way
        try:
            message = self._receive(deadline)
        except TimeoutError:
            return None
        return message if "event" in message else None

    def monitor(self, line: str) -> str:
        """Run one line of the human monitor and return its text, with plain newlines."""
        text = self.execute("human-monitor-command", {"command-line": line})
        if not isinstance(text, str):
            raise EnvironmentFault(f"the monitor gave no text for {line!r}", where=str(self.path))
        return text.replace("\r\n", "\n")

    def _send(self, data: bytes, descriptor: int | None) -> None:
        try:
            if descriptor is None:
                self._socket.sendall(data)
            else:
                sent = socket.send_fds(self._socket, [data], [descriptor])
                self._socket.sendall(data[sent:])
        except (BrokenPipeError, ConnectionResetError) as error:
            raise self._gone() from error

    def _receive(self, deadline: float) -> dict[str, JsonValue]:
        """Return the next message.  Raises TimeoutError after ``deadline``."""
        while (end := self._buffer.find(b"\n")) < 0:
            if len(self._buffer) > MAX_MESSAGE:
                raise EnvironmentFault("a QMP message is too long", where=str(self.path))
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError
            self._socket.settimeout(left)
            try:
                chunk = self._socket.recv(1 << 16)
            except ConnectionResetError as error:
                raise self._gone() from error
            if not chunk:
                raise self._gone()
            self._buffer += chunk
        line = bytes(self._buffer[:end])
        del self._buffer[: end + 1]
        try:
            message = json.loads(line)
        except ValueError as error:
            raise EnvironmentFault("a QMP message is not JSON", where=str(self.path)) from error
        if not isinstance(message, dict):
            raise EnvironmentFault("a QMP message is not an object", where=str(self.path))
        return message

    def _gone(self) -> GuestGone:
        return GuestGone("QEMU closed the control socket", where=str(self.path))

    def close(self) -> None:
        """Close the connection; harmless when closed already."""
        self._socket.close()

    def __enter__(self) -> QmpClient:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
