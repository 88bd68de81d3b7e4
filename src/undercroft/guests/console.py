"""Commands for the micro guest's shell, over its serial line.

The shell (``micro.INIT``) neither echoes nor prompts.  What comes back is the guest's word and is
trusted with nothing: it is for tests and the demo, which play the person inside.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import socket
import time
from pathlib import Path

from undercroft.base import EnvironmentFault

LIMIT = 16 << 20
"""Bytes of output that are taken before giving up."""


class CommandError(EnvironmentFault):
    """A command inside the guest ended with another status than 0; ``output`` is what it said."""

    def __init__(self, command: str, status: int, output: str) -> None:
        self.status = status
        self.output = output
        super().__init__(
            f"`{command}` failed in the guest", expected="exit status 0", got=f"{status}: {output}"
        )


def _receive(connection: socket.socket, mark: bytes, deadline: float) -> bytes:
    data = bytearray()
    while True:
        # The mark, the status and the end of the line.
        at = data.find(mark)
        if at >= 0 and data.find(b"\n", at) >= 0:
            return bytes(data)
        left = deadline - time.monotonic()
        if left <= 0 or len(data) > LIMIT:
            raise TimeoutError
        connection.settimeout(left)
        chunk = connection.recv(1 << 16)
        if not chunk:
            raise ConnectionError("the serial line was closed")
        data += chunk


def run_command(path: Path, command: str, *, timeout_s: float = 20.0) -> str:
    """Run ``command`` in the guest's shell and return what it printed.

    Raises CommandError if it fails, EnvironmentFault if the guest does not answer in time.
    """
    token = secrets.token_hex(8)
    begin, end = f"<{token}".encode(), f"{token}>".encode()
    # The command is one word for eval, so that broken quoting in it cannot swallow the mark.
    word = "'" + command.replace("'", "'\\''") + "'"
    line = f"echo; echo '<'{token}; (eval {word}) 2>&1; echo \"\"{token}'>'$?\n"
    if len(line) > 4000:
        raise ValueError("a terminal's line has at most 4095 bytes")
    deadline = time.monotonic() + timeout_s
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(line.encode())
            data = _receive(connection, end, deadline)
    except (OSError, ConnectionError) as error:
        raise EnvironmentFault(
            "the guest's console does not answer",
            where=str(path),
            expected=f"the end of `{command}` within {timeout_s:.0f} s",
            remedy="see serial.log beside it",
        ) from error
    output, _, rest = data.partition(end)
    output = output.partition(begin)[2].partition(b"\n")[2]
    status = rest.split(b"\n")[0].strip()
    text = output.replace(b"\r\n", b"\n").decode(errors="replace").removesuffix("\n")
    if status != b"0":
        raise CommandError(command, int(status) if status.isdigit() else -1, text)
    return text


def read_file(path: Path, name: str, *, timeout_s: float = 30.0) -> bytes:
    """Return the content of the file ``name`` inside the guest."""
    text = run_command(path, f"base64 '{name}'", timeout_s=timeout_s)
    try:
        return base64.b64decode(text.replace("\n", ""), validate=True)
    except binascii.Error as error:
        raise EnvironmentFault(f"the console garbled {name}", where=str(path)) from error
