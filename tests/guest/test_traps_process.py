"""Write traps on a real process: a stand-in for the hypervisor with one page of shared memory.

Needs the right to trace a child and a kernel with write-protecting userfaultfd (Linux 5.19).
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, MemoryFault
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.traps.inject import remote_syscall, syscall_instruction
from undercroft.securekernel.traps.writetrap import (
    DEVICE,
    PAGE,
    HostRange,
    TrappedWrite,
    WriteTraps,
)

pytestmark = pytest.mark.guest

VICTIM = """
import ctypes, mmap, os, sys
fd = os.memfd_create("ram"); os.ftruncate(fd, 16 * 4096)
ram = mmap.mmap(fd, 16 * 4096); ram[:] = b"." * len(ram)
print(ctypes.addressof(ctypes.c_char.from_buffer(ram)), flush=True)
for line in sys.stdin:
    verb, *arguments = line.split()
    if verb == "write":
        ram[int(arguments[0])] = int(arguments[1])
    print("done", ram[int(arguments[0])], len(os.listdir("/proc/self/fd")), flush=True)
"""
BORROWER = """
import array, ctypes, mmap, os, socket, sys
ours = socket.socket(fileno=int(sys.argv[1]))
os.setgid(65534); os.setuid(65534)
""" + VICTIM.replace(
    "for line in sys.stdin:",
    """
_, data, _, _ = ours.recvmsg(1, socket.CMSG_SPACE(4))
print(array.array("i", data[0][2])[0], flush=True)
for line in sys.stdin:""",
)
"""The same as nobody, which takes one descriptor first."""
GUEST_BASE = 0x100000


@dataclass
class Victim:
    process: subprocess.Popen[str]
    host: int

    @property
    def ranges(self) -> list[HostRange]:
        return [HostRange(GUEST_BASE, 16 * PAGE, self.host)]

    def ask(self, command: str) -> None:
        assert self.process.stdin
        self.process.stdin.write(command + "\n")
        self.process.stdin.flush()

    def answer(self) -> list[str]:
        assert self.process.stdout
        return self.process.stdout.readline().split()


@pytest.fixture
def victim() -> Iterator[Victim]:
    process = subprocess.Popen(
        [sys.executable, "-c", VICTIM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout
    yield Victim(process, int(process.stdout.readline()))
    process.kill()
    process.communicate()


@pytest.fixture
def borrower() -> Iterator[tuple[Victim, socket.socket]]:
    ours, theirs = socket.socketpair()
    process = subprocess.Popen(
        [sys.executable, "-c", BORROWER, str(theirs.fileno())],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        pass_fds=(theirs.fileno(),),
    )
    theirs.close()
    assert process.stdout
    yield Victim(process, int(process.stdout.readline())), ours
    ours.close()
    process.kill()
    process.communicate()


def await_write(traps: WriteTraps) -> TrappedWrite:
    for _ in range(50):
        if found := traps.wait(0.2):
            assert len(found) == 1
            return found[0]
    raise AssertionError("no write was trapped")


def use_for_ten_seconds(traps: WriteTraps) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        traps.wait(0.1)
        traps.protect(GUEST_BASE, PAGE)


def byte_at(process: int, address: int) -> bytes:
    with Path(f"/proc/{process}/mem").open("rb", buffering=0) as memory:
        memory.seek(address)
        return memory.read(1)


def test_the_process_makes_the_call_and_goes_on_as_before(victim: Victim) -> None:
    pid = victim.process.pid
    for _ in range(20):  # it sleeps in read(2), which has to be restarted each time
        assert remote_syscall(pid, 39) == pid  # getpid
    with pytest.raises(OSError, match="Bad file descriptor"):
        remote_syscall(pid, 3, 9999)  # close
    victim.ask("read 0")
    assert victim.answer()[:2] == ["done", str(ord("."))]
    assert syscall_instruction(pid) > 0


def test_a_write_waits_and_lands_only_when_it_is_let_through(victim: Victim) -> None:
    with WriteTraps(victim.process.pid, victim.ranges) as traps:
        traps.protect(GUEST_BASE + 2 * PAGE, PAGE)
        victim.ask(f"write {2 * PAGE + 7} 65")
        write = await_write(traps)
        assert write.paddr == GUEST_BASE + 2 * PAGE + 7
        assert write.page == GUEST_BASE + 2 * PAGE
        assert write.thread == victim.process.pid
        assert byte_at(victim.process.pid, victim.host + 2 * PAGE + 7) == b"."
        traps.lift(write.page, PAGE)
        assert victim.answer()[1] == "65"


def test_other_pages_are_free_and_a_page_can_be_protected_again(victim: Victim) -> None:
    with WriteTraps(victim.process.pid, victim.ranges) as traps:
        traps.protect(GUEST_BASE, PAGE)
        victim.ask(f"write {PAGE} 1")
        assert victim.answer()[1] == "1"
        for value in (66, 67):
            victim.ask(f"write 5 {value}")
            traps.lift(await_write(traps).page, PAGE)
            assert victim.answer()[1] == str(value)
            traps.protect(GUEST_BASE, PAGE)


def test_letting_go_leaves_the_process_free_and_without_our_descriptor(victim: Victim) -> None:
    victim.ask("read 0")
    before = victim.answer()[2]
    with WriteTraps(victim.process.pid, victim.ranges) as traps:
        traps.protect(GUEST_BASE, 16 * PAGE)
        victim.ask("write 0 70")
        await_write(traps)
    assert victim.answer() == ["done", "70", before]


def test_memory_outside_the_ranges_is_refused(victim: Victim) -> None:
    with WriteTraps(victim.process.pid, victim.ranges) as traps:
        with pytest.raises(MemoryFault):
            traps.protect(GUEST_BASE - 1, 1)
        with pytest.raises(MemoryFault):
            traps.protect(GUEST_BASE + 15 * PAGE, 2 * PAGE)


@pytest.mark.skipif(
    os.getuid() != 0 or not Path(DEVICE).exists(),
    reason=f"needs root, and a kernel with {DEVICE} (Linux 6.1)",
)
def test_a_hypervisor_without_privileges_borrows_the_device(
    borrower: tuple[Victim, socket.socket],
) -> None:
    victim, ours = borrower
    lent: list[int] = []

    @contextmanager
    def lend(descriptor: int) -> Iterator[int]:
        socket.send_fds(ours, [b"x"], [descriptor])
        lent.append(int(victim.answer()[0]))
        yield lent[-1]

    with WriteTraps(victim.process.pid, victim.ranges, lend) as traps:
        traps.protect(GUEST_BASE, PAGE)
        victim.ask("write 3 65")
        write = await_write(traps)
        assert write.paddr == GUEST_BASE + 3
        traps.lift(write.page, PAGE)
        assert victim.answer()[1] == "65"
    setting = Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip()
    assert bool(lent) == (setting == "0")


@pytest.mark.skipif(os.getuid() != 0, reason="needs root")
def test_without_the_device_it_is_refused_with_a_remedy(
    borrower: tuple[Victim, socket.socket],
) -> None:
    if Path("/proc/sys/vm/unprivileged_userfaultfd").read_text().strip() != "0":
        pytest.skip("this machine lets everybody create a userfaultfd")
    victim, _ = borrower
    with pytest.raises(EnvironmentFault) as caught:
        WriteTraps(victim.process.pid, victim.ranges)
    assert DEVICE in caught.value.remedy


def test_the_end_of_the_hypervisor_is_noticed(victim: Victim) -> None:
    with WriteTraps(victim.process.pid, victim.ranges) as traps:
        traps.protect(GUEST_BASE, PAGE)
        victim.process.send_signal(signal.SIGKILL)
        victim.process.wait()
        with pytest.raises(GuestGone):
            use_for_ten_seconds(traps)


def test_a_process_that_is_not_there_is_gone() -> None:
    finished = subprocess.Popen([sys.executable, "-c", ""])
    finished.wait()
    with pytest.raises(GuestGone):
        WriteTraps(finished.pid, [])


def test_a_process_that_is_traced_already_is_an_error_with_a_remedy() -> None:
    with pytest.raises(EnvironmentFault) as caught:
        remote_syscall(os.getpid(), 39)
    assert "CAP_SYS_PTRACE" in caught.value.remedy
