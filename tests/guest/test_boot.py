"""The micro guest boots, is measured, answers, and ends."""

from __future__ import annotations

import datetime as dt
import hashlib
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.guests import qmp
from undercroft.guests.console import CommandError
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.processes import identify, wait_gone
from undercroft.guests.run import Guest, guests, start

pytestmark = pytest.mark.guest

IMA_LIST = "/sys/kernel/security/ima/ascii_runtime_measurements"
EVENT_LOG = "/sys/kernel/security/tpm0/binary_bios_measurements"


def test_the_guest_runs_the_packaged_kernel(running_guest: Guest, micro_build: GuestBuild) -> None:
    assert running_guest.console("uname -r") == micro_build.kernel_release
    assert running_guest.console("cat /proc/cmdline").startswith(micro_build.command_line)


def test_ima_measures_files_of_the_build_and_nothing_else(
    running_guest: Guest, micro_build: GuestBuild
) -> None:
    rows = [line.split() for line in running_guest.console(f"cat {IMA_LIST}").splitlines()]
    assert rows[0][4] == "boot_aggregate"
    measured = {row[4]: row[3].removeprefix("sha256:") for row in rows[1:]}
    assert {"/init", "/bin/busybox", "/bin/worker"} <= measured.keys()
    assert measured == {path: micro_build.files[path].sha256 for path in measured}


def test_the_vtpm_has_both_banks_and_the_firmware_used_it(running_guest: Guest) -> None:
    banks = running_guest.console("ls -d /sys/class/tpm/tpm0/pcr-*").split()
    assert [bank.rpartition("/")[2] for bank in banks] == ["pcr-sha1", "pcr-sha256"]
    assert len(set(running_guest.console("cat /sys/class/tpm/tpm0/pcr-sha256/4").strip())) > 1
    log = running_guest.read_file(EVENT_LOG)
    assert b"Spec ID Event03" in log
    assert hashlib.sha256(log).hexdigest() in running_guest.console(f"sha256sum {EVENT_LOG}")


def test_guest_memory_is_a_file_that_others_can_map(running_guest: Guest) -> None:
    info = running_guest.info
    assert info.ram.stat().st_size == info.memory_mb << 20
    assert info.ram.stat().st_mode & 0o077 == 0
    assert qmp.execute(info.qmp, "query-status")["running"] is True


def test_a_command_that_fails_says_so(running_guest: Guest) -> None:
    with pytest.raises(CommandError) as caught:
        running_guest.console("echo seen; false")
    assert (caught.value.status, caught.value.output) == (1, "seen")
    # Broken quoting does not break the line for the next command.
    with pytest.raises(CommandError):
        running_guest.console("echo 'never closed")
    assert running_guest.console("printf '%s' \"it's\"") == "it's"


def test_the_console_gives_up_in_time(running_guest: Guest) -> None:
    with pytest.raises(EnvironmentFault, match="console does not answer"):
        running_guest.console("sleep 2", timeout_s=0.3)
    time.sleep(2)
    assert running_guest.console("echo back") == "back"


def test_the_guest_is_found_again(running_guest: Guest, guest_home: Path) -> None:
    name = running_guest.info.name
    again = Guest.load(guest_home, name)
    assert again.info == running_guest.info
    assert name in [g.info.name for g in guests(guest_home) if isinstance(g, Guest)]


def test_a_second_guest_of_that_name_is_refused(
    running_guest: Guest, guest_home: Path, micro_build: GuestBuild
) -> None:
    with pytest.raises(EnvironmentFault, match="runs already"):
        start(micro_build, guest_home, running_guest.info.name, now=dt.datetime.now(dt.UTC))
    assert running_guest.is_alive()


def test_a_guest_that_dies_is_noticed_and_leaves_nothing_behind(
    start_guest: Callable[..., Guest],
) -> None:
    guest = start_guest(wait=False)
    assert guest.is_alive()
    guest.info.qemu.send(signal.SIGKILL)
    with pytest.raises(EnvironmentFault, match="ended while it started"):
        guest.wait_ready(30)
    with pytest.raises(EnvironmentFault, match="ended while"):
        guest.console("true")
    guest.stop()
    assert not any(process.is_alive() for process in guest.info.processes.values())
    sockets = [path for path in guest.info.folder.iterdir() if path.is_socket()]
    assert (sockets, guest.info.ram.exists()) == ([], False)


def test_the_end_of_the_guest_ends_its_vtpm(start_guest: Callable[..., Guest]) -> None:
    guest = start_guest(wait=False)
    processes = guest.info.processes
    assert all(identify(process.pid) == process for process in processes.values())
    guest.stop()
    assert all(wait_gone(process, 1) for process in processes.values())
    guest.stop()  # again: nothing to do, no error
