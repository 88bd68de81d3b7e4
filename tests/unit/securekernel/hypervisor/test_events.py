"""What QEMU tells of the machine: a reset, and whether it stands still."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor.events import MachineEvents

Tell = Callable[[dict[str, object]], None]


@pytest.fixture
def monitor(tmp_path: Path) -> Iterator[tuple[Path, Tell, Callable[[], None]]]:
    """A QMP socket that answers two commands and then tells what the test has it tell."""
    path = tmp_path / "qmp"
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()
    connections: list[socket.socket] = []
    ready = threading.Event()

    def serve() -> None:
        connection, _ = listener.accept()
        connections.append(connection)
        stream = connection.makefile("rwb")
        for answer in ('{"QMP": {}}', '{"return": {}}', '{"return": {"running": true}}'):
            if "return" in answer:
                stream.readline()
            stream.write(answer.encode() + b"\r\n")
            stream.flush()
        ready.set()

    thread = threading.Thread(target=serve)
    thread.start()

    def tell(message: dict[str, object]) -> None:
        assert ready.wait(10)
        connections[0].sendall(json.dumps(message).encode() + b"\r\n")

    yield path, tell, lambda: connections[0].shutdown(socket.SHUT_RDWR)
    thread.join()
    for each in (*connections, listener):
        each.close()


def test_a_reset_is_told_with_its_reason(
    monitor: tuple[Path, Tell, Callable[[], None]],
) -> None:
    path, tell, _ = monitor
    events = MachineEvents(path)
    events.look(0)
    assert (events.replaced, events.stopped) == ("", False)
    tell({"event": "NIC_RX_FILTER_CHANGED", "data": {}})
    tell({"event": "STOP"})
    events.look(0.05)
    assert (events.replaced, events.stopped) == ("", True)
    tell({"event": "RESUME"})
    tell({"event": "RESET", "data": {"guest": True, "reason": "guest-reset"}})
    events.look(10)
    assert not events.stopped
    assert events.replaced == "the guest was reset (guest-reset)"
    events.close()


def test_a_monitor_that_closes_says_that_the_guest_is_gone(
    monitor: tuple[Path, Tell, Callable[[], None]],
) -> None:
    path, tell, shut = monitor
    events = MachineEvents(path)
    tell({"event": "STOP"})
    events.look(0.05)
    shut()
    with pytest.raises(GuestGone):
        events.look(10)
    events.close()
