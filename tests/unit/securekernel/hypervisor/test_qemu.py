"""The QMP client and the QEMU backend, against a QMP server that speaks real answers."""

from __future__ import annotations

import array
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, JsonValue
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor.qemu import QemuGuest, _qmp_sockets_of, attach
from undercroft.securekernel.hypervisor.qmp import QmpClient, QmpError

VECTORS = Path(__file__).parents[3] / "vectors" / "qemu"
SIZE = 0x200000
GREETING = {"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}
VIEW = (
    'FlatView #0\r\n AS "memory", root: system\r\n Root memory region: system\r\n'
    f"  0000000000000000-{SIZE - 1:016x} (prio 0, ram): m0\r\n"
)


class FakeQemu:
    """Serves one QMP client at a time; keeps the commands it got, in order."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "qmp.sock"
        self.ram = folder / "ram"
        self.ram.write_bytes(b"RAM!" + bytes(SIZE - 4))
        self.share = True
        self.registers = (VECTORS / "registers-2cpu.txt").read_text()
        self.device_state = (VECTORS / "device-state-2cpu.bin").read_bytes()
        self.running = True
        self.hang_up_on = ""
        self.commands: list[str] = []
        self._fdset = -1
        self._listener = socket.socket(socket.AF_UNIX)
        self._listener.bind(str(self.path))
        self._listener.listen(4)
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join(5)

    def _serve(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            with client:
                self._session(client)

    def _session(self, client: socket.socket) -> None:
        client.sendall(json.dumps(GREETING).encode() + b"\r\n")
        while True:
            data, descriptors, _, _ = socket.recv_fds(client, 1 << 16, 1)
            if not data:
                return
            request = json.loads(data)
            name = request["execute"]
            arguments = request.get("arguments", {})
            line = arguments.get("command-line", "")
            self.commands.append(line or name)
            if self.hang_up_on and self.hang_up_on in (line, name):
                return
            if descriptors:
                self._fdset = descriptors[0]
            client.sendall(b'{"event": "RESUME", "timestamp": {}}\r\n')
            client.sendall(json.dumps(self._answer(name, line)).encode() + b"\r\n")

    def _answer(self, name: str, line: str) -> dict[str, JsonValue]:
        if name == "xen-save-devices-state":
            os.write(self._fdset, self.device_state)
            return {"return": {}}
        if name == "cont":
            self.running = True
        if name == "stop":
            self.running = False
        table: dict[str, JsonValue] = {
            "qmp_capabilities": {},
            "query-name": {"name": "web"},
            "query-status": {"running": self.running, "status": "running"},
            "query-memdev": [{"id": "m0", "size": SIZE, "share": self.share}],
            "qom-get": str(self.ram),
            "info mtree -f": VIEW,
            "info registers -a": self.registers,
            "gpa2hva 0x0": "Host virtual address for 0x0 (m0) is 0x1000\r\n",
            "stop": {},
            "cont": {},
            "add-fd": {"fdset-id": 3, "fd": 9},
            "remove-fd": {},
        }
        key = line or name
        if key not in table:
            return {"error": {"class": "CommandNotFound", "desc": f"no command {key}"}}
        return {"return": table[key]}


@pytest.fixture
def qemu(tmp_path: Path) -> Iterator[FakeQemu]:
    fake = FakeQemu(tmp_path)
    yield fake
    fake.close()


def test_attaching_needs_only_the_socket(qemu: FakeQemu) -> None:
    guest = attach(str(qemu.path))
    assert guest.name == "web"
    assert guest.pid == os.getpid()
    assert guest.memory.read(0, 4) == b"RAM!"
    assert guest.memory.size == SIZE
    assert guest.channels == ("memory:shared-file", "registers:qemu-device-state")
    guest.check_alive()


def test_a_private_mapping_of_a_file_is_not_read_from_the_file(qemu: FakeQemu) -> None:
    """With share=off the guest's writes stay in the process; the file would show old bytes."""
    qemu.share = False
    guest = attach(str(qemu.path))
    assert guest.channels[0] == "memory:process"


def test_vcpus_have_msrs_and_the_guest_runs_again(qemu: FakeQemu) -> None:
    guest = attach(str(qemu.path))
    qemu.commands.clear()
    vcpus = guest.vcpus()
    assert [vcpu.index for vcpu in vcpus] == [0, 1]
    assert all(vcpu.lstar is not None for vcpu in vcpus)
    assert qemu.running
    order = [name for name in qemu.commands if name in ("stop", "xen-save-devices-state", "cont")]
    assert order == ["stop", "xen-save-devices-state", "cont"]


def test_unknown_device_state_gives_registers_without_msrs(qemu: FakeQemu) -> None:
    qemu.device_state = b"QEVM\0\0\0\4"
    assert all(vcpu.lstar is None for vcpu in attach(str(qemu.path)).vcpus())


def test_a_pause_nests_and_ends_on_an_error(qemu: FakeQemu) -> None:
    guest = attach(str(qemu.path))

    def inside() -> None:
        with guest.paused(), guest.paused():
            assert not qemu.running
            raise KeyError

    with pytest.raises(KeyError):
        inside()
    assert qemu.running
    assert qemu.commands.count("stop") == 1


def test_a_guest_that_was_paused_stays_paused(qemu: FakeQemu) -> None:
    qemu.running = False
    guest = attach(str(qemu.path))
    with guest.paused():
        pass
    assert "cont" not in qemu.commands


def test_a_refused_command_is_an_error_with_its_class(qemu: FakeQemu) -> None:
    with QmpClient(qemu.path) as client, pytest.raises(QmpError) as error:
        client.execute("nonsense")
    assert error.value.error_class == "CommandNotFound"


def test_a_missing_socket_and_a_dead_listener_are_a_gone_guest(tmp_path: Path) -> None:
    with pytest.raises(GuestGone, match="no QMP socket"):
        attach(str(tmp_path / "none.sock"))
    path = tmp_path / "dead.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(GuestGone, match="nobody listens"):
        attach(str(path))


@pytest.mark.parametrize("command", ["qmp_capabilities", "query-memdev", "info mtree -f"])
def test_qemu_dying_in_the_middle_is_a_gone_guest(qemu: FakeQemu, command: str) -> None:
    qemu.hang_up_on = command
    with pytest.raises(GuestGone):
        attach(str(qemu.path))


def test_qemu_dying_in_a_pause_is_a_gone_guest(qemu: FakeQemu) -> None:
    guest = attach(str(qemu.path))
    qemu.hang_up_on = "info registers -a"
    with pytest.raises(GuestGone):
        guest.vcpus()


def test_an_ended_process_is_noticed(qemu: FakeQemu, monkeypatch: pytest.MonkeyPatch) -> None:
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)
    pidfd = os.pidfd_open(child)
    monkeypatch.setattr("undercroft.securekernel.hypervisor.qemu._open_pidfd", lambda _: pidfd)
    guest = attach(str(qemu.path))
    with pytest.raises(GuestGone, match="QEMU ended"):
        guest.check_alive()
    os.waitpid(child, 0)


def server(path: Path, answer: Callable[[socket.socket], object]) -> None:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1)

    def serve() -> None:
        client, _ = listener.accept()
        with client, listener:
            answer(client)

    threading.Thread(target=serve, daemon=True).start()


@pytest.mark.parametrize(
    ("greeting", "complaint"),
    [(b"hello\n", "not JSON"), (b"[]\n", "not an object"), (b"{}\n", "not a QMP socket")],
)
def test_another_service_on_the_socket(tmp_path: Path, greeting: bytes, complaint: str) -> None:
    path = tmp_path / "other.sock"
    server(path, lambda client: client.sendall(greeting))
    with pytest.raises(EnvironmentFault, match=complaint):
        QmpClient(path)


def test_a_monitor_held_by_another_client_is_a_clear_fault(tmp_path: Path) -> None:
    path = tmp_path / "held.sock"
    release = threading.Event()
    server(path, lambda _: bool(release.wait(5)))
    with pytest.raises(EnvironmentFault, match="another client"):
        QmpClient(path, timeout=0.1)
    release.set()


def test_the_process_on_the_other_side_is_known(qemu: FakeQemu) -> None:
    with QmpClient(qemu.path) as client:
        assert client.peer_pid == os.getpid()
    assert array.array("i").itemsize == 4


def test_a_pid_without_a_qmp_socket_is_a_clear_fault() -> None:
    with pytest.raises(EnvironmentFault, match="no -qmp unix socket"):
        attach(str(os.getpid()))
    with pytest.raises(GuestGone):
        attach(str(2**22 + 1))


def test_a_guest_can_be_named(qemu: FakeQemu) -> None:
    assert QemuGuest(qemu.path, name="mine").name == "mine"


def test_a_second_monitor_is_for_events(tmp_path: Path) -> None:
    sleeper = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    options = ["-qmp", "unix:a.sock,server=on", "-qmp", "unix:/b.sock,server=on,wait=off"]
    with subprocess.Popen([*sleeper, *options], cwd=tmp_path) as process:
        try:
            assert _qmp_sockets_of(process.pid) == [tmp_path / "a.sock", Path("/b.sock")]
        finally:
            process.kill()


def test_without_a_second_monitor_nothing_is_told(qemu: FakeQemu) -> None:
    assert QemuGuest(qemu.path).events() is None


def test_a_supervisor_resumes_only_what_it_paused(qemu: FakeQemu) -> None:
    controls = QemuGuest(qemu.path).controls()
    qemu.commands.clear()
    controls.resume()
    assert qemu.commands == []
    controls.pause()
    controls.resume()
    assert [name for name in qemu.commands if name in ("stop", "cont")] == ["stop", "cont"]
    qemu.running = False
    qemu.commands.clear()
    controls.pause()
    controls.resume()
    assert not {"stop", "cont"} & set(qemu.commands)


def test_a_descriptor_is_lent_and_taken_back(qemu: FakeQemu) -> None:
    guest = QemuGuest(qemu.path)
    qemu.commands.clear()
    with Path("/dev/null").open("rb") as ours, guest.lent(ours.fileno()) as number:
        assert number == 9
        assert "remove-fd" not in qemu.commands
    assert [name for name in qemu.commands if name.endswith("-fd")] == ["add-fd", "remove-fd"]
