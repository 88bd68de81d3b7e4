"""QMP against a server that says what it likes."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.guests.qmp import execute

GREETING = b'{"QMP": {}}\n'
EMPTY = b'{"return": {}}\n'


def _answer(path: Path, lines: list[bytes]) -> threading.Thread:
    """Serve one connection: the first line at once, one more for each line received."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def run() -> None:
        with listener, listener.accept()[0] as connection, connection.makefile("rwb") as stream:
            for number, line in enumerate(lines):
                if number and not stream.readline():
                    return
                stream.write(line)
                stream.flush()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "qmp.sock"


def test_the_answer_is_found_behind_events(path: Path) -> None:
    event = b'{"event": "STOP"}\n'
    thread = _answer(path, [GREETING, EMPTY, event + event + b'{"return": {"running": true}}\n'])
    assert execute(path, "query-status") == {"running": True}
    thread.join(5)


@pytest.mark.parametrize(
    "lines",
    [
        [GREETING],
        [GREETING, EMPTY],
        [GREETING, EMPTY, b"not json\n"],
        [GREETING, EMPTY, b"[]\n"],
        [GREETING, EMPTY, b'{"return": 1}'],
        [b""],
    ],
)
def test_no_answer(path: Path, lines: list[bytes]) -> None:
    thread = _answer(path, lines)
    with pytest.raises(EnvironmentFault, match="does not answer"):
        execute(path, "stop", timeout_s=2)
    thread.join(5)


def test_a_refusal(path: Path) -> None:
    thread = _answer(path, [GREETING, EMPTY, b'{"error": {"class": "CommandNotFound"}}\n'])
    with pytest.raises(EnvironmentFault, match="refused") as caught:
        execute(path, "nonsense")
    assert "CommandNotFound" in caught.value.got
    thread.join(5)


def test_nobody_there(path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="does not answer"):
        execute(path, "stop")
