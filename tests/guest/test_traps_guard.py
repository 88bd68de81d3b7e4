"""The guard over a stand-in for the hypervisor: every mode, storms, faults, and the evidence.

Needs the right to trace a child and a kernel with write-protecting userfaultfd (Linux 5.19).
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from undercroft.base import VerificationError
from undercroft.formats.evidence.interval import epoch_digest, parse_chain, parse_epoch
from undercroft.securekernel.hypervisor.monitor import RamRange
from undercroft.securekernel.hypervisor.ram import GuestRam, ProcessBlock
from undercroft.securekernel.linux.mapped import Extent
from undercroft.securekernel.traps import answer, freeze
from undercroft.securekernel.traps.guard import CHANNEL, Guard, Mode
from undercroft.securekernel.traps.judge import Cover
from undercroft.securekernel.traps.regions import PAGE, PAGE_TABLES, Region
from undercroft.securekernel.traps.writetrap import HostRange
from undercroft.verify.interval import IntervalDemand, verify_chain, verify_interval

pytestmark = pytest.mark.guest

VICTIM = """
import ctypes, mmap, os, sys
ram = mmap.mmap(-1, 16 * 4096, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
ram[:] = b"." * len(ram)
print(ctypes.addressof(ctypes.c_char.from_buffer(ram)), flush=True)
for line in sys.stdin:
    at, value, count = map(int, line.split())
    if value < 0:
        ram.madvise(mmap.MADV_DONTNEED, at, 4096)
        count = 0
    for number in range(count):
        ram[at] = (value + number) % 256
    print("done", flush=True)
"""
CONSTANT = Region("constant", (Extent(0, 2 * PAGE, PAGE), Extent(0, 4 * PAGE + 8, 8)))
ENTRIES = Region(PAGE_TABLES, (Extent(0, 6 * PAGE, 8), Extent(0, 6 * PAGE + 8, 8)), entries=True)
MadeGuard = Callable[..., Guard]


@dataclass
class Victim:
    process: subprocess.Popen[str]
    host: int

    @property
    def memory(self) -> GuestRam:
        return GuestRam(
            [RamRange(0, 16 * PAGE, "ram", 0)], {"ram": ProcessBlock(self.process.pid, self.host)}
        )

    def start_writing(self, at: int, value: int, count: int = 1) -> None:
        assert self.process.stdin
        self.process.stdin.write(f"{at} {value} {count}\n")
        self.process.stdin.flush()

    def write(self, at: int, value: int, count: int = 1) -> None:
        self.start_writing(at, value, count)
        assert self.process.stdout
        assert self.process.stdout.readline() == "done\n"


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
def guard(victim: Victim) -> Iterator[MadeGuard]:
    made: list[Guard] = []

    def make(*regions: Region, mode: Mode = Mode.OBSERVE, **options: Path | ToldMachine) -> Guard:
        ranges = [HostRange(0, 16 * PAGE, victim.host)]
        made.append(
            Guard(victim.process.pid, victim.memory, ranges, regions, mode=mode, **options)  # type: ignore[arg-type]
        )
        return made[-1]

    yield make
    for each in made:
        each.close()


class ToldMachine:
    """A machine of which a test tells."""

    def __init__(self) -> None:
        self.replaced = ""
        self.stopped = False
        self._news, self._pen = os.pipe()

    def fileno(self) -> int:
        return self._news

    def look(self, timeout: float) -> None:
        if select.select([self._news], [], [], timeout)[0]:
            self.replaced = os.read(self._news, 100).decode()

    def tell(self, what: str) -> None:
        os.write(self._pen, what.encode())


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def demand(*names: str) -> IntervalDemand:
    return IntervalDemand(names, (CHANNEL,))


def test_a_quiet_interval_is_proven(guard: MadeGuard, tmp_path: Path) -> None:
    made = guard(CONSTANT, log=tmp_path / "chain")
    first = made.close_epoch()
    last = made.close_epoch()
    verified = verify_interval(
        made.chain(), first.t0, last.t1, head=made.journal.head, demand=demand("constant")
    )
    assert verified.last_modified == {"constant": None}
    made.close()
    saved = parse_chain((tmp_path / "chain").read_bytes())
    assert saved == made.chain()
    assert epoch_digest(saved[-1]) == made.journal.head
    assert parse_epoch(saved[-1]).cause == "closed"


def test_an_observed_write_lands_and_is_told(guard: MadeGuard, victim: Victim) -> None:
    made = guard(CONSTANT)
    victim.write(2 * PAGE + 100, 65)
    until(lambda: made.status().violations >= 1)
    change = made.close_epoch().changes[-1]
    assert (change.range, change.landed, change.lawful) == ("constant", True, False)
    assert (change.paddr, change.before[8:9], change.after[8:9]) == (2 * PAGE + 92, b".", b"A")
    assert str(victim.process.pid) in change.thread
    epoch = made.close_epoch()
    assert epoch.ranges[0].last_modified == 1
    with pytest.raises(VerificationError) as caught:
        verify_interval(
            made.chain(),
            made.journal.began,
            epoch.t1,
            head=made.journal.head,
            demand=demand("constant"),
        )
    assert caught.value.check == "interval.change"


def test_a_byte_beside_the_region_is_nobodys(guard: MadeGuard, victim: Victim) -> None:
    made = guard(CONSTANT)
    victim.write(4 * PAGE + 7, 65)
    victim.write(4 * PAGE + 16, 65)
    assert made.status().violations == 0
    victim.write(4 * PAGE + 15, 65)
    until(lambda: made.status().violations >= 1)


def test_a_refused_write_never_lands(guard: MadeGuard, victim: Victim) -> None:
    made = guard(CONSTANT, mode=Mode.ENFORCE)
    victim.start_writing(2 * PAGE, 65)
    until(lambda: made.status().frozen and freeze.is_frozen(victim.process.pid))
    (change,) = made.close_epoch().changes
    assert not change.landed
    assert change.before == change.after
    assert victim.memory.read(2 * PAGE, 1) == b"."
    made.close()
    assert freeze.is_frozen(victim.process.pid)
    assert victim.memory.read(2 * PAGE, 1) == b"."


def test_by_policy_the_hypervisor_is_ended(guard: MadeGuard, victim: Victim) -> None:
    made = guard(CONSTANT, mode=Mode.KILL)
    victim.start_writing(2 * PAGE, 65)
    assert victim.process.wait(20) == -signal.SIGKILL
    until(lambda: bool(made.status().ended))
    assert made.status().violations == 1


def test_a_snapshot_has_all_memory_as_it_was(
    guard: MadeGuard, victim: Victim, tmp_path: Path
) -> None:
    victim.write(9 * PAGE, 66)
    made = guard(CONSTANT, mode=Mode.SNAPSHOT, snapshot=tmp_path / "ram")
    victim.start_writing(2 * PAGE, 65)
    until(lambda: made.status().violations >= 1)
    assert (tmp_path / "ram").read_bytes() == victim.memory.read(0, 16 * PAGE)
    assert (tmp_path / "ram").read_bytes()[9 * PAGE : 9 * PAGE + 2] == b"B."


def test_a_snapshot_never_overwrites_and_says_so(
    guard: MadeGuard, victim: Victim, tmp_path: Path
) -> None:
    (tmp_path / "ram").write_text("an earlier one")
    made = guard(CONSTANT, mode=Mode.SNAPSHOT, snapshot=tmp_path / "ram")
    victim.start_writing(2 * PAGE, 65)
    until(lambda: made.status().violations >= 1)
    assert "snapshot" in made.status().fault
    assert (tmp_path / "ram").read_text() == "an earlier one"
    assert freeze.is_frozen(victim.process.pid)


def test_accessed_and_dirty_bits_may_be_set_and_nothing_else(
    guard: MadeGuard, victim: Victim
) -> None:
    victim.write(6 * PAGE, 0x03)
    victim.write(6 * PAGE + 8, 0x63)
    made = guard(ENTRIES)
    victim.write(6 * PAGE, 0x63)
    assert made.status().violations == 0
    victim.write(6 * PAGE + 8, 0x61)  # both bits were set: the processor has no reason to write
    until(lambda: made.status().violations >= 1)


def test_a_storm_is_stated_and_the_page_is_covered_again(
    guard: MadeGuard, victim: Victim, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answer, "STORM_WRITES", 20)
    monkeypatch.setattr(answer, "COOLING_S", 0.3)
    made = guard(CONSTANT)
    victim.write(
        4 * PAGE + 100, 0, 3_000_000
    )  # beside the region: not a violation, but many faults
    until(lambda: bool(made.journal.blind))
    epoch = made.close_epoch()
    assert epoch.blind[0].range == "constant"
    assert "storm" in epoch.blind[0].reason
    assert epoch.blind[0].t1 - epoch.blind[0].t0 >= 250_000_000
    victim.write(4 * PAGE + 8, 65)
    until(lambda: made.status().violations >= 1)


def test_a_page_that_is_discarded_is_stated_and_covered_again(
    guard: MadeGuard, victim: Victim
) -> None:
    made = guard(CONSTANT)
    victim.write(8 * PAGE, -1)
    assert made.status().fault == ""
    victim.write(2 * PAGE, -1)
    until(lambda: made.status().violations >= 1)
    assert "was discarded" in made.status().fault
    epoch = made.close_epoch()
    assert "discarded" in epoch.blind[0].reason
    assert set(epoch.changes[0].after) == {0}
    victim.write(2 * PAGE + 5, 65)
    until(lambda: made.status().violations >= 2)


def test_what_comes_and_goes_is_covered_from_epoch_to_epoch(
    guard: MadeGuard, victim: Victim
) -> None:
    made = guard(CONSTANT)
    late = Region("late", (Extent(0x9000, 9 * PAGE, PAGE), Extent(0, 2 * PAGE + 8, 8)))
    free: list[int] = []

    def is_free(_region: Region, vaddr: int, _page: int) -> bool:
        return vaddr in free

    victim.write(9 * PAGE, 65)
    made.cover(Cover("it", (late,), None, is_free))
    assert made.covers() == {"it"}
    assert made.explains("it")
    victim.write(9 * PAGE, 66)
    until(lambda: made.status().violations >= 1)
    free.append(0x9005)
    victim.write(9 * PAGE + 5, 67)
    until(lambda: made.covers() == frozenset())
    seen = made.status().violations
    victim.write(9 * PAGE, 68)
    assert made.status().violations == seen
    victim.write(2 * PAGE + 8, 69)  # it is still the constant's
    until(lambda: made.status().violations > seen)
    made.uncover("it", "not there any more")
    made.close()
    epochs = [parse_epoch(each) for each in made.chain()]
    assert [[covered.name for covered in epoch.ranges] for epoch in epochs] == [
        ["constant"],
        ["constant", "late"],
        ["constant"],
    ]
    assert "covers it" in epochs[0].cause
    assert "given up by the guest" in epochs[1].cause
    verify_chain(made.chain(), made.journal.head)


@pytest.mark.parametrize("mode", [Mode.OBSERVE, Mode.ENFORCE])
def test_a_reset_ends_the_session_and_is_no_violation(
    guard: MadeGuard, victim: Victim, mode: Mode
) -> None:
    machine = ToldMachine()
    made = guard(CONSTANT, mode=mode, machine=machine)
    machine.tell("the guest was reset (guest-reset)")
    victim.write(2 * PAGE, 65)
    until(lambda: bool(made.status().ended))
    status = made.status()
    assert (status.replaced, status.frozen, status.violations) == (True, False, 0)
    last = parse_epoch(made.chain()[-1])
    assert last.cause == "ended"
    assert "guest-reset" in last.blind[0].reason


def test_what_is_written_while_no_processor_runs_is_a_restore(
    guard: MadeGuard, victim: Victim
) -> None:
    machine = ToldMachine()
    made = guard(CONSTANT, mode=Mode.ENFORCE, machine=machine)
    machine.stopped = True
    victim.write(2 * PAGE, 65)
    until(lambda: bool(made.status().ended))
    assert made.status().replaced
    assert made.status().violations == 0


def test_while_nothing_is_told_a_violation_is_one(guard: MadeGuard, victim: Victim) -> None:
    made = guard(CONSTANT, machine=ToldMachine())
    victim.write(2 * PAGE, 65)
    until(lambda: made.status().violations >= 1)
    assert not made.status().replaced


def test_the_end_of_the_hypervisor_ends_the_chain(guard: MadeGuard, victim: Victim) -> None:
    made = guard(CONSTANT)
    victim.process.kill()
    until(lambda: bool(made.status().ended))
    last = parse_epoch(made.chain()[-1])
    assert last.cause == "ended"
    assert last.blind


def test_a_log_that_cannot_be_written_is_told(guard: MadeGuard) -> None:
    made = guard(CONSTANT, log=Path("/dev/full"))
    made.close_epoch()
    assert "/dev/full" in made.status().fault
    made.close_epoch()
    assert len(made.chain()) == 2


def test_a_snapshot_wants_a_file(guard: MadeGuard) -> None:
    with pytest.raises(ValueError, match="snapshot"):
        guard(CONSTANT, mode=Mode.SNAPSHOT)
