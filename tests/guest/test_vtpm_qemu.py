"""The multiplexer between a real QEMU with OVMF and a real swtpm: boot, reset, migrate, crash."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import HashAlgorithm
from undercroft.securekernel.vtpm import VtpmClient, VtpmUnavailable
from undercroft.testing.vtpm import SwtpmProcess, wait_for

pytestmark = pytest.mark.guest

SHA256 = HashAlgorithm.SHA256
CODE = Path("/usr/share/OVMF/OVMF_CODE_4M.fd")
VARIABLES = Path("/usr/share/OVMF/OVMF_VARS_4M.fd")
SEPARATOR_ONLY = "3d458cfe55cc03ea1f443f1562beec8df51c75e14a9fcf9a7234a13f198e7969"
"""A PCR that got EV_SEPARATOR and nothing else: the firmware has come as far as booting."""
BOOT_TIMEOUT_S = 90.0


class Vm:
    """QEMU with firmware and no disk; ``qmp`` runs a command."""

    def __init__(self, folder: Path, tpm: Path, device: str, *options: str) -> None:
        self._socket = folder / f"qmp-{time.monotonic_ns()}"
        self.process = subprocess.Popen(
            [
                "qemu-system-x86_64", "-machine", "q35", "-accel", "tcg", "-m", "128",
                "-nodefaults", "-display", "none",
                "-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={CODE}",
                "-drive", f"if=pflash,format=raw,unit=1,file={folder / 'vars'}",
                "-chardev", f"socket,id=c,path={tpm}", "-tpmdev", "emulator,id=t,chardev=c",
                "-device", f"{device},tpmdev=t", "-qmp", f"unix:{self._socket},server,nowait",
                *options,
            ],
            stdin=subprocess.DEVNULL,
        )  # fmt: skip
        wait_for(self._socket)
        self._peer = socket.socket(socket.AF_UNIX)
        self._peer.settimeout(30)
        self._peer.connect(str(self._socket))
        self._lines = self._peer.makefile("rb")
        self._lines.readline()
        self.qmp("qmp_capabilities")

    def qmp(self, command: str, **arguments: object) -> Any:
        message = {"execute": command, "arguments": arguments}
        self._peer.sendall(json.dumps(message).encode() + b"\n")
        while "event" in (reply := json.loads(self._lines.readline())):
            pass
        assert "error" not in reply, reply
        return reply["return"]

    def wait_migrated(self) -> None:
        wait_until(lambda: self.qmp("query-migrate").get("status") == "completed")

    def kill(self) -> None:
        self.process.kill()
        self.wait()

    def wait(self) -> None:
        self.process.wait(30)
        self._lines.close()
        self._peer.close()


def wait_until(condition: Callable[[], bool], seconds: float = BOOT_TIMEOUT_S) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not happen in time"
        time.sleep(0.1)


class Bench:
    """swtpm, multiplexer with a launch, and the VMs that are plugged into it one after another."""

    def __init__(self, folder: Path, like: SwtpmProcess) -> None:
        self.folder = folder
        self.swtpm = SwtpmProcess(folder, like=like)
        self.listen = folder / "qemu.sock"
        (folder / "manifest").write_bytes(b"manifest")
        shutil.copy(VARIABLES, folder / "vars")
        self._multiplexer = subprocess.Popen(
            [
                sys.executable, "-m", "undercroft.securekernel.vtpm",
                "--upstream", str(self.swtpm.path), "--listen", str(self.listen),
                "--control", str(folder / "kernel.sock"), "--pidfile", str(folder / "pid"),
                "--manifest", str(folder / "manifest"),
            ],
        )  # fmt: skip
        wait_for(folder / "pid")
        self.client = VtpmClient(folder / "kernel.sock")
        self._vms: list[Vm] = []

    def start(self, device: str = "tpm-crb", *options: str) -> Vm:
        self._vms.append(Vm(self.folder, self.listen, device, *options))
        return self._vms[-1]

    def pcrs(self) -> dict[int, str]:
        (bank,) = self.client.quote(bytes(32), {SHA256: range(24)}).pcrs
        return {index: value.hex() for index, value in bank.values.items()}

    def wait_booted(self) -> dict[int, str]:
        """Until firmware has nothing left to boot and measures no more."""
        wait_until(lambda: self.pcrs()[6] == SEPARATOR_ONLY)
        last: dict[int, str] = {}
        while last != (last := self.pcrs()):
            time.sleep(1.0)
        return last

    def wait_started(self) -> None:
        """Until the firmware has measured its first volume."""
        wait_until(lambda: self.pcrs()[0] != "00" * 32)

    def launch(self) -> tuple[int, str]:
        status = self.client.status()
        return status["launch"], status["launch_reason"]

    def close(self) -> None:
        for vm in self._vms:
            if vm.process.poll() is None:
                vm.kill()
        self.client.close()
        self._multiplexer.terminate()
        assert self._multiplexer.wait(10) == 0
        self.swtpm.stop()


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> SwtpmProcess:
    swtpm = SwtpmProcess(tmp_path_factory.mktemp("manufactured"))
    swtpm.stop()
    return swtpm


@pytest.fixture
def bench(tmp_path: Path, manufactured: SwtpmProcess) -> Iterator[Bench]:
    bench = Bench(tmp_path, manufactured)
    yield bench
    bench.close()


def check_measured(bench: Bench) -> dict[int, str]:
    booted = bench.wait_booted()
    assert all(booted[index] != "00" * 32 for index in range(8))
    assert booted[2] == booted[3] == SEPARATOR_ONLY
    assert booted[17] not in ("00" * 32, "ff" * 32)
    assert booted[20] == "00" * 32
    assert bench.launch() == (1, "power-on")
    status = bench.client.status()
    assert status["startup"] == "done"
    assert status["guest_commands"] > 50
    assert status["refused_commands"] == status["refused_control"] == 0
    return booted


def test_firmware_measures_into_a_tis_tpm_that_we_launched(bench: Bench) -> None:
    bench.start("tpm-tis")
    check_measured(bench)


def test_boot_reset_freeze_crash_and_power_off_with_crb(bench: Bench) -> None:
    vm = bench.start()
    first = check_measured(bench)
    vm.qmp("system_reset")
    wait_until(lambda: bench.launch() == (2, "reset"))
    again = bench.wait_booted()
    assert {n: again[n] for n in range(18)} == {n: first[n] for n in range(18)}
    assert again[18] != first[18]  # says "reset", and which launch it is

    vm.qmp("stop")
    assert bench.pcrs() == again  # a frozen guest
    vm.kill()
    wait_until(lambda: bench.client.status()["events"] != [])
    assert bench.pcrs() == again  # a crashed one: its TPM still says what it had been

    other = bench.start()
    wait_until(lambda: bench.launch() == (3, "power-on"))
    bench.wait_started()
    other.qmp("quit")
    other.wait()
    wait_until(lambda: not bench.client.status()["running"])
    with pytest.raises(VtpmUnavailable, match="not running"):
        bench.pcrs()


def test_suspend_to_a_file_and_resume_keeps_the_guests_pcrs(bench: Bench) -> None:
    vm = bench.start()
    before = bench.wait_booted()
    image = bench.folder / "image"
    vm.qmp("stop")
    vm.qmp("migrate", uri=f"exec:cat > {image}")
    vm.wait_migrated()
    vm.qmp("quit")
    vm.wait()
    resumed = bench.start("tpm-crb", "-incoming", f"exec:cat {image}")
    wait_until(lambda: resumed.qmp("query-status")["status"] not in ("inmigrate", "postmigrate"))
    resumed.qmp("cont")
    after = bench.pcrs()
    assert {n: after[n] for n in range(18)} == {n: before[n] for n in range(18)}
    assert bench.launch() == (2, "restore")
    log = bench.client.launch_log(bench.client.quote(bytes(32), {SHA256: [17]}))
    assert b"reason: restore" in log


def test_a_swtpm_killed_under_a_running_guest_does_not_hang_it(bench: Bench) -> None:
    vm = bench.start()
    bench.wait_started()
    bench.swtpm.stop()
    vm.qmp("system_reset")
    wait_until(lambda: "swtpm" in bench.client.status()["fault"])
    assert vm.qmp("query-status")["running"]
    bench.swtpm.start()
    vm.qmp("system_reset")
    wait_until(lambda: bench.client.status()["running"])
    bench.wait_started()
    assert "connected to swtpm again" in [e for _, e in bench.client.status()["events"]]
