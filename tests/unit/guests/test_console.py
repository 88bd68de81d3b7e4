"""The console against a real shell behind a socket, and against silence and noise."""

from __future__ import annotations

import socket
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.guests import console
from undercroft.guests.console import CommandError, read_file, run_command

Serve = Callable[[Callable[[socket.socket], None]], Path]


@pytest.fixture
def serve(tmp_path: Path) -> Iterator[Serve]:
    """A function that serves connections to a socket, one after the other."""
    path = tmp_path / "serial.sock"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    threads: list[threading.Thread] = []

    def start(handle: Callable[[socket.socket], None]) -> Path:
        def loop() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    handle(connection)

        thread = threading.Thread(target=loop)
        thread.start()
        threads.append(thread)
        return path

    yield start
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    for thread in threads:
        thread.join(5)


def _shell(connection: socket.socket) -> None:
    """A shell that runs one line, with some noise before, as a kernel may print."""
    line = b""
    while not line.endswith(b"\n"):
        chunk = connection.recv(4096)
        if not chunk:
            return
        line += chunk
    done = subprocess.run(["sh"], input=line, capture_output=True, check=False)
    connection.sendall(b"[    1.0] noise\r\n" + done.stdout.replace(b"\n", b"\r\n"))


@pytest.fixture
def shell(serve: Serve) -> Path:
    return serve(_shell)


@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("echo one; echo two", "one\ntwo"),
        ("printf 'no newline'", "no newline"),
        ("true", ""),
        ('echo "it\'s"', "it's"),
        ("echo out; echo err >&2", "out\nerr"),
        ("echo '>0'; echo '<'", ">0\n<"),
    ],
)
def test_what_a_command_prints(shell: Path, command: str, output: str) -> None:
    assert run_command(shell, command) == output


@pytest.mark.parametrize(
    ("command", "status"), [("exit 7", 7), ("false", 1), ("echo 'never closed", 2)]
)
def test_a_command_that_fails(shell: Path, command: str, status: int) -> None:
    with pytest.raises(CommandError) as caught:
        run_command(shell, command)
    assert caught.value.status == status


def test_a_file_s_bytes(shell: Path, tmp_path: Path) -> None:
    content = bytes(range(256)) * 20
    (tmp_path / "file").write_bytes(content)
    assert read_file(shell, str(tmp_path / "file")) == content


def test_a_garbled_file(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "run_command", lambda *_a, **_k: "not*base64")
    with pytest.raises(EnvironmentFault, match="garbled"):
        read_file(Path("x"), "y")


def test_silence(serve: Serve) -> None:
    def swallow(connection: socket.socket) -> None:
        connection.recv(4096)

    path = serve(swallow)
    with pytest.raises(EnvironmentFault, match="does not answer"):
        run_command(path, "true", timeout_s=0.2)


def test_endless_noise(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(console, "LIMIT", 10_000)

    def noise(connection: socket.socket) -> None:
        try:
            while True:
                connection.sendall(b"x" * 4096)
        except OSError:
            pass

    with pytest.raises(EnvironmentFault, match="does not answer"):
        run_command(serve(noise), "true", timeout_s=5)


def test_nobody_listens(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="does not answer"):
        run_command(tmp_path / "none", "true")


def test_a_line_that_is_too_long(shell: Path) -> None:
    with pytest.raises(ValueError, match="4095"):
        run_command(shell, "x" * 4096)
