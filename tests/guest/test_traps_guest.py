"""Write traps on a real guest: lawful change passes, everything else is a violation."""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import os
import random
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import EnvironmentFault, Outcome
from undercroft.formats.evidence.interval import Change, encode_epoch, parse_epoch
from undercroft.formats.kernel import KernelModule, load_kernel
from undercroft.formats.kernel.module import decompress_module, parse_module
from undercroft.guests.attacks import PATCHED_FUNCTION, inline_patch, transient
from undercroft.guests.console import CommandError, run_command
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.micro import READY_MARKER
from undercroft.guests.run import Guest, RunOptions
from undercroft.packages import Archive, EntryKind, read_deb
from undercroft.securekernel.hypervisor.qemu import QemuGuest, attach
from undercroft.securekernel.hypervisor.qmp import QmpClient
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.traps.attach import guard_kernel
from undercroft.securekernel.traps.freeze import is_frozen
from undercroft.securekernel.traps.guard import CHANNEL, Guard, Mode
from undercroft.verify.interval import IntervalDemand, verify_chain, verify_interval

pytestmark = pytest.mark.guest

SCHEDSTATS = "/proc/sys/kernel/sched_schedstats"
TRANSIENTS = 40
MODULE = "dummy"
PAGE_TABLE = "level2_kernel_pgt"
AVAILABLE = 4
"""Bit 10 of an entry, in its second byte: no processor looks at it (Intel SDM vol. 3, 4.5)."""
TRAPPED = RunOptions(one_thread=True)
StartGuest = Callable[..., Guest]


@dataclass
class Watched:
    """A guest, its kernel, and what a guard over it has seen."""

    guest: Guest
    kernel: SecureKernel
    qemu: QemuGuest
    changes: list[Change] = field(default_factory=list)

    @contextmanager
    def guarded(self, mode: Mode = Mode.OBSERVE, log: Path | None = None) -> Iterator[Guard]:
        self.changes.clear()
        with guard_kernel(
            self.kernel.proof,
            self.qemu.pid,
            self.qemu.host_ranges(),
            mode=mode,
            log=log,
            on_change=self.changes.append,
        ) as guard:
            yield guard

    def address(self, symbol: str) -> int:
        located = self.kernel.proof.kernel
        assert located is not None
        return located.base + self.kernel.image.offset(symbol)

    def place(self, symbol: str, offset: int) -> int:
        """Return an address in a symbol; of the page table, the entry for the kernel's start."""
        if symbol == PAGE_TABLE:
            return self.address(symbol) + 8 * (self.address("_text") >> 21 & 511) + offset
        return self.address(symbol) + offset

    def violations(self) -> list[Change]:
        return [change for change in self.changes if not change.lawful]


def watch(guest: Guest, home: Path) -> Watched:
    os.environ["UNDERCROFT_HOME"] = str(home)
    target = wiring.open_target(f"qemu:{guest.info.name}")
    assert isinstance(target.guest, QemuGuest)
    return Watched(guest, SecureKernel(target.guest, target.image), target.guest)


@pytest.fixture(scope="module")
def watched(start_guest: StartGuest, guest_home: Path) -> Watched:
    return watch(start_guest(TRAPPED), guest_home)


def settle(guard: Guard) -> None:
    deadline = time.monotonic() + 60
    while guard.status().pending:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_the_guest_runs_on_and_everything_is_still_explained(watched: Watched) -> None:
    with watched.guarded() as guard:
        watched.guest.console("ls -R /proc/sys >/dev/null 2>&1; dmesg >/dev/null; true")
        assert {fact.outcome for fact in watched.kernel.proof.sweep()} == {Outcome.PASS}
        epoch = guard.close_epoch()
    assert {covered.name for covered in epoch.ranges} == {
        "kernel.text",
        "kernel.rodata",
        "kernel.ro-after-init",
        "kernel.page-tables",
    }
    assert watched.violations() == []
    assert guard.status().ended == "closed"


def test_a_static_key_is_lawful_and_every_place_is_named(watched: Watched) -> None:
    with watched.guarded() as guard:
        for value in (1, 0, 1, 0):
            watched.guest.console(f"echo {value} > {SCHEDSTATS}")
        settle(guard)
        assert watched.violations() == []
        assert len(watched.changes) >= 20
        assert {change.rule for change in watched.changes} == {"jump-label"}
        assert all(change.symbol and change.thread for change in watched.changes)
        assert all(change.writes >= 1 and change.open_ns > 0 for change in watched.changes)
        epoch = guard.close_epoch()
        modified = {covered.name: covered.last_modified for covered in epoch.ranges}
        assert modified == {
            "kernel.text": 1,
            "kernel.rodata": 0,
            "kernel.ro-after-init": 0,
            "kernel.page-tables": 0,
        }


def test_loading_a_module_and_hot_plug_of_a_cpu_are_lawful(watched: Watched) -> None:
    with watched.guarded() as guard:
        watched.guest.console("insmod /adversaries/hide_task.ko pid=1; rmmod hide_task")
        watched.guest.console("echo 0 > /sys/devices/system/cpu/cpu1/online", timeout_s=60)
        watched.guest.console("echo 1 > /sys/devices/system/cpu/cpu1/online", timeout_s=60)
        settle(guard)
    assert watched.violations() == []


def test_tracing_on_and_off_is_lawful(watched: Watched) -> None:
    tracing = "/sys/kernel/tracing"
    try:
        watched.guest.console(f"mount -t tracefs tracefs {tracing} 2>/dev/null; ls {tracing}/trace")
    except CommandError:
        pytest.skip("this kernel has no tracefs")
    events = f"{tracing}/events/sched/sched_switch/enable"
    with watched.guarded() as guard:
        for value in (1, 0):
            watched.guest.console(f"echo {value} > {events}", timeout_s=60)
        settle(guard)
    assert watched.violations() == []
    assert {"static-call", "jump-label"} & {change.rule for change in watched.changes}


def test_a_kprobe_and_the_function_tracer_are_lawful(watched: Watched) -> None:
    tracing = "/sys/kernel/tracing"
    tracers = watched.guest.console(
        f"mount -t tracefs tracefs {tracing} 2>/dev/null; cat {tracing}/available_tracers; "
        f"ls {tracing}"
    )
    with watched.guarded() as guard:
        if "kprobe_events" in tracers:  # in the middle of a function: an INT3, then a jump
            for command in (
                f"echo p:mine do_sys_openat2+20 > {tracing}/kprobe_events 2>/dev/null || "
                f"echo p:mine do_sys_openat2 > {tracing}/kprobe_events",
                f"echo 1 > {tracing}/events/kprobes/mine/enable; sleep 1; cat /proc/version",
                f"echo 0 > {tracing}/events/kprobes/mine/enable; sleep 1",
                f"echo > {tracing}/kprobe_events",
            ):
                watched.guest.console(command, timeout_s=60)
        if "function" in tracers.split():
            for command in (
                f"echo 'vfs_*' > {tracing}/set_ftrace_filter; "
                f"echo function > {tracing}/current_tracer",
                f"ls /proc >/dev/null; echo nop > {tracing}/current_tracer; "
                f"echo > {tracing}/set_ftrace_filter",
            ):
                watched.guest.console(command, timeout_s=120)
        settle(guard)
    assert watched.violations() == []
    if "function" in tracers.split():
        assert len([change for change in watched.changes if change.rule == "ftrace"]) > 20


def module_from_package(home: Path, release: str) -> bytes:
    """Return the module's bytes from the kernel's own package."""
    package = Archive(home / "apt", now=dt.datetime.now(dt.UTC)).fetch(f"linux-image-{release}")
    wanted = f"/{MODULE}.ko"
    for entry in read_deb(package.path.read_bytes(), lambda path: wanted in path):
        if entry.kind is EntryKind.FILE:
            return decompress_module(entry.data)
    raise LookupError(f"the package has no {MODULE}.ko")


def put_file(guest: Guest, path: str, data: bytes) -> None:
    """Write a file in the guest, through its console."""
    text = base64.b64encode(gzip.compress(data, mtime=0)).decode()
    guest.console(f": > {path}.b64")
    for start in range(0, len(text), 2000):
        guest.console(f"printf %s {text[start : start + 2000]} >> {path}.b64")
    guest.console(f"base64 -d {path}.b64 | gunzip > {path}")


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_module_is_covered_while_it_is_there(watched: Watched, guest_home: Path) -> None:
    guest = watched.guest
    content = module_from_package(guest_home, guest.info.kernel_release)
    put_file(guest, f"/tmp/{MODULE}.ko", content)
    parsed = parse_module(content)

    def library(name: str) -> KernelModule | None:
        return parsed if name == MODULE else None

    tracing = "/sys/kernel/tracing"
    has_tracer = "function" in guest.console(
        f"mount -t tracefs tracefs {tracing} 2>/dev/null; cat {tracing}/available_tracers; true"
    )
    with TrappedKernel(
        watched.qemu, watched.kernel.image, Mode.OBSERVE, library=library
    ) as trapped:
        guard = trapped.guard
        guest.console(f"insmod /tmp/{MODULE}.ko")
        until(lambda: MODULE in guard.covers())
        if has_tracer:
            for command in (
                f"echo '{MODULE}_*' > {tracing}/set_ftrace_filter; "
                f"echo function > {tracing}/current_tracer",
                f"echo nop > {tracing}/current_tracer; echo > {tracing}/set_ftrace_filter",
            ):
                guest.console(command, timeout_s=120)
        guest.console("insmod /adversaries/hide_task.ko pid=1; sleep 1")
        until(lambda: trapped.modules.not_covered() == ("hide_task",))
        guest.console(f"rmmod hide_task; rmmod {MODULE}; insmod /tmp/{MODULE}.ko; sleep 0.5")
        settle(guard)
        assert guard.status().violations == 0
        until(lambda: MODULE in guard.covers())
        names = guest.console("cat /proc/kallsyms | grep ' dummy_xmit'")
        frame = trapped.proof.translate(int(names.split()[0], 16))
        direct_map = trapped.proof.translate(watched.address("page_offset_base"))
        start = int.from_bytes(watched.qemu.memory.read(direct_map, 8), "little")
        with inline_patch(guest, start + frame) as adversary:  # it wants an address there
            adversary.switch(True)
            until(lambda: guard.status().violations > 0)
            adversary.switch(False)
        seen = [parse_epoch(each) for each in (*guard.chain(), encode_epoch(guard.close_epoch()))]
        changes = [change for epoch in seen for change in epoch.changes]
        refused = next(change for change in changes if not change.lawful)
        assert refused.range == f"module.{MODULE}.text"
        assert refused.symbol == f"dummy_xmit+0x0 [{MODULE}]"
        assert any(
            {f"module.{MODULE}.{part}" for part in ("text", "constants", "page-tables")}
            <= {covered.name for covered in epoch.ranges}
            for epoch in seen
        )
        if has_tracer:
            assert {
                change.rule for change in changes if change.range == f"module.{MODULE}.text"
            } >= {"ftrace"}
        violations = guard.status().violations
        guest.console(f"rmmod {MODULE}; ls -R /proc/sys >/dev/null 2>&1; true")
        until(lambda: not guard.covers())
        settle(guard)
        assert guard.status().violations == violations
    verify_chain(guard.chain(), guard.journal.head)


def test_a_process_is_covered_on_request(watched: Watched) -> None:
    guest = watched.guest
    pid = int(guest.console("sleep 1000 >/dev/null 2>&1 & echo $!"))
    name = f"process.{pid}.code"
    with TrappedKernel(
        watched.qemu, watched.kernel.image, Mode.OBSERVE, more=(f"pid:{pid}",)
    ) as trapped:
        guard = trapped.guard
        until(lambda: name in guard.covers())
        guest.console("ls -R /proc/sys >/dev/null 2>&1; true")
        assert guard.status().violations == 0
        region = next(region for region in guard.regions if region.name == name)
        held = trapped.proof.translate(watched.address("page_offset_base"))
        start = int.from_bytes(watched.qemu.memory.read(held, 8), "little")
        # The last page would be the vDSO's, which is the kernel's own and covered anyway.
        with transient(guest, start + region.extents[0].paddr + 4000, 1) as adversary:
            adversary.run(1, dwell_ns=1000, gap_us=1)
            until(lambda: guard.status().violations > 0)
        changes = [
            change for each in (*guard.chain(), encode_epoch(guard.close_epoch()))
            for change in parse_epoch(each).changes if not change.lawful
        ]  # fmt: skip
        assert {change.range for change in changes} == {name}
        guest.console(f"kill {pid}")
        until(lambda: name not in guard.covers())
        guest.console("ls -R /proc/sys >/dev/null 2>&1; true")
        assert guard.status().violations == len(changes)


def test_an_inline_patch_is_a_violation_with_symbol_and_bytes(watched: Watched) -> None:
    with watched.guarded() as guard:
        with inline_patch(watched.guest, watched.address(PATCHED_FUNCTION)) as adversary:
            adversary.switch(True)
            settle(guard)
            first = watched.violations()[0]
            assert first.symbol == f"{PATCHED_FUNCTION}+0x0"
            assert first.landed
            # endbr64; mov $-ENOSYS, %rax: its first store, or all of it if the page stayed open.
            assert "f30f1efa48c7c0da" in first.after.hex()
            assert "f30f1efa48c7c0da" not in first.before.hex()
            assert "CPU" in first.thread
            adversary.switch(False)
        assert guard.status().violations >= 2


@pytest.mark.parametrize("dwell_ns", [1_000, 50_000])
@pytest.mark.parametrize(
    ("where", "symbol", "offset", "mask"),
    [
        ("kernel.text", PATCHED_FUNCTION, 9, 1),
        ("kernel.rodata", "linux_banner", 3, 1),
        ("kernel.ro-after-init", "idt_table", 16 * 0x21 + 13, 1),
        ("kernel.page-tables", PAGE_TABLE, 1, AVAILABLE),
    ],
)
def test_a_transient_change_is_caught_every_time(
    watched: Watched, where: str, symbol: str, offset: int, mask: int, dwell_ns: int
) -> None:
    caught = 0
    with (
        watched.guarded(),
        transient(watched.guest, watched.place(symbol, offset), mask) as adversary,
    ):
        for _ in range(TRANSIENTS):
            watched.changes.clear()
            adversary.run(1, dwell_ns=dwell_ns, gap_us=1)
            caught += {change.range for change in watched.violations()} == {where}
    assert caught == TRANSIENTS


@pytest.mark.parametrize(
    ("where", "symbol", "offset"),
    [
        ("kernel.text", PATCHED_FUNCTION, 0),
        ("kernel.rodata", "linux_banner", 3),
        ("kernel.ro-after-init", "idt_table", 16 * 0x21 + 13),
        ("kernel.page-tables", PAGE_TABLE, 1),
    ],
)
def test_enforced_the_write_never_lands(
    start_guest: StartGuest, guest_home: Path, where: str, symbol: str, offset: int
) -> None:
    watched = watch(start_guest(TRAPPED), guest_home)
    memory, pid = watched.qemu.memory, watched.qemu.pid
    address = watched.place(symbol, offset)
    module = "inline_patch" if where == "kernel.text" else "transient"
    switch = "active" if where == "kernel.text" else "run"
    watched.guest.console(f"insmod /adversaries/{module}.ko target={address:#x}")
    if where == "kernel.page-tables":
        watched.guest.console(f"echo {AVAILABLE} > /sys/module/{module}/parameters/mask")
    with watched.guarded(Mode.ENFORCE) as guard:
        pages = {
            extent.paddr: memory.read(extent.paddr, extent.size)
            for region in guard.regions
            for extent in region.extents
        }
        watched.guest.console(
            f"(sleep 0.2; echo 1 > /sys/module/{module}/parameters/{switch}) >/dev/null 2>&1 &"
        )
        deadline = time.monotonic() + 20
        while not guard.status().frozen:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        time.sleep(0.2)
        assert is_frozen(pid)
        (violation,) = watched.violations()
        assert (violation.range, violation.landed) == (where, False)
        assert violation.symbol.startswith(symbol if where != "kernel.page-tables" else "")
        assert violation.before == violation.after
        for paddr, before in pages.items():
            assert memory.read(paddr, len(before)) == before
        epoch = guard.close_epoch()
        assert epoch.changes[-1] == violation
    assert is_frozen(pid)
    assert all(memory.read(paddr, len(before)) == before for paddr, before in pages.items())
    os.kill(pid, 9)


GUARDS = """
    import os, sys, time
    from undercroft import wiring
    from undercroft.securekernel.inspect import SecureKernel
    from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.traps.attach import guard_kernel
    target = wiring.open_target("qemu:" + sys.argv[1])
    kernel = SecureKernel(target.guest, target.image)
    ranges = target.guest.host_ranges()
    for _ in range(int(sys.argv[2])):
        child = os.fork()
        if not child:
            guard = guard_kernel(kernel.proof, target.guest.pid, ranges)
            print(os.getpid(), flush=True)
            time.sleep(600)
        os.waitpid(child, 0)
"""
KILLS = 50


@pytest.mark.slow  # fifty restarts of the guard, each with a console to wait for
def test_the_guest_outlives_guards_that_are_killed_at_random_moments(watched: Watched) -> None:
    draw = random.Random(1)
    toggling = f"while :; do echo 1 > {SCHEDSTATS}; echo 0 > {SCHEDSTATS}; done"
    pid = watched.guest.console(f"({toggling}) >/dev/null 2>&1 & echo $!")
    with subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(GUARDS), watched.guest.info.name, str(KILLS)],
        stdout=subprocess.PIPE,
        text=True,
    ) as guards:
        assert guards.stdout
        for _ in range(KILLS):
            child = int(guards.stdout.readline())
            time.sleep(draw.uniform(0, 0.05))
            os.kill(child, signal.SIGKILL)
        assert guards.wait() == 0
    assert watched.guest.console(f"kill {pid}; echo alive", timeout_s=60) == "alive"
    assert {fact.outcome for fact in watched.kernel.proof.sweep()} == {Outcome.PASS}


def test_letting_go_leaves_the_hypervisor_as_it_was(watched: Watched) -> None:
    def state() -> tuple[list[str], str]:
        folder = Path(f"/proc/{watched.qemu.pid}")
        flags = [row for row in (folder / "smaps").read_text().splitlines() if "VmFlags" in row]
        files = sorted(str(entry.readlink()) for entry in (folder / "fd").iterdir())
        return [f for f in files if "userfaultfd" in f], "\n".join(flags)

    before = state()
    assert before[0] == []
    assert " uw" not in before[1]  # the flag of a mapping under userfaultfd write-protection
    with watched.guarded():
        assert " uw" in state()[1]
    assert state()[0] == []
    assert " uw" not in state()[1]


def test_an_emulator_with_several_threads_is_refused_with_a_remedy(
    running_guest: Guest, guest_home: Path
) -> None:
    watched = watch(running_guest, guest_home)
    with pytest.raises(EnvironmentFault) as caught, watched.guarded():
        pass
    assert "thread=single" in caught.value.remedy


@pytest.fixture
def strangers_guest(micro_build: GuestBuild, tmp_path: Path) -> Iterator[tuple[int, Path, Path]]:
    """A guest that was not started for us: private anonymous RAM, and QEMU in its sandbox."""
    qmp, serial, log = (tmp_path / name for name in ("qmp", "serial", "log"))
    # fmt: off
    process = subprocess.Popen([
        "qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none",
        "-machine", "q35", "-accel", "tcg,thread=single", "-cpu", "max", "-smp", "2", "-m", "512",
        "-sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        "-kernel", str(micro_build.kernel.path), "-initrd", str(micro_build.initrd.path),
        "-append", micro_build.command_line,
        "-chardev", f"socket,id=serial,path={serial},server=on,wait=off,logfile={log}",
        "-serial", "chardev:serial", "-qmp", f"unix:{qmp},server=on,wait=off",
        "-qmp", f"unix:{qmp}-events,server=on,wait=off",
    ])
    # fmt: on
    deadline = time.monotonic() + 120
    while not log.exists() or READY_MARKER.encode() not in log.read_bytes():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield process.pid, qmp, serial
    process.kill()
    process.wait()


def test_private_memory_of_a_sandboxed_hypervisor(
    strangers_guest: tuple[int, Path, Path], micro_build: GuestBuild
) -> None:
    pid, qmp, serial = strangers_guest
    qemu = QemuGuest(qmp)
    assert qemu.pid == pid
    assert "memory:process" in qemu.channels
    kernel = SecureKernel(qemu, load_kernel(micro_build.kernel.path.read_bytes()))
    changes: list[Change] = []
    with guard_kernel(kernel.proof, pid, qemu.host_ranges(), on_change=changes.append) as guard:
        for value in (1, 0):
            run_command(serial, f"echo {value} > {SCHEDSTATS}", timeout_s=60)
        settle(guard)
        assert changes
        assert all(change.lawful for change in changes)
        run_command(
            serial,
            "insmod /adversaries/inline_patch.ko "
            f"target=0x$(grep ' {PATCHED_FUNCTION}$' /proc/kallsyms | cut -d' ' -f1); "
            "echo 1 > /sys/module/inline_patch/parameters/active",
            timeout_s=60,
        )
    assert any(
        change.symbol == f"{PATCHED_FUNCTION}+0x0" for change in changes if not change.lawful
    )


@pytest.mark.slow  # the guest boots twice
def test_a_reset_begins_a_new_session_once_the_guest_has_booted_again(
    strangers_guest: tuple[int, Path, Path], micro_build: GuestBuild
) -> None:
    pid, qmp, serial = strangers_guest
    log = serial.with_name("log")
    guest = attach(str(pid))
    image = load_kernel(micro_build.kernel.path.read_bytes())
    with TrappedKernel(guest, image, Mode.ENFORCE) as trapped:
        first = trapped.guard
        with QmpClient(qmp) as monitor:
            monitor.execute("system_reset")
        until(lambda: bool(first.status().ended))
        assert first.status().replaced
        assert first.status().violations == 0
        assert not is_frozen(pid)
        assert "guest was reset" in parse_epoch(first.chain()[-1]).blind[-1].reason
        assert trapped.now().outcome is Outcome.UNKNOWN
        deadline = time.monotonic() + 300
        while log.read_bytes().count(READY_MARKER.encode()) < 2 or not trapped.renew():
            assert time.monotonic() < deadline
            time.sleep(0.2)
        for value in (1, 0):
            run_command(serial, f"echo {value} > {SCHEDSTATS}", timeout_s=60)
        settle(trapped.guard)
        epoch = trapped.guard.close_epoch()
        assert epoch.session != parse_epoch(first.chain()[-1]).session
        assert epoch.changes
        assert all(change.lawful for change in epoch.changes)
        assert trapped.sessions == [first.chain()]
        assert {fact.outcome for fact in trapped.proof.sweep()} == {Outcome.PASS}


@pytest.mark.slow  # refuses a page that was open for 100 ms, which a busy host may cause
def test_the_record_binds_a_chain_that_proves_the_interval(watched: Watched) -> None:
    second = QemuGuest(watched.guest.info.qmp)
    with TrappedKernel(watched.qemu, watched.kernel.image, Mode.OBSERVE, second=second) as trapped:
        for value in (1, 0):
            watched.guest.console(f"echo {value} > {SCHEDSTATS}")
            time.sleep(2)
            trapped.traps()
        record = trapped.record()
        chain, since = trapped.guard.chain(), trapped.guard.status().since
    (fact,) = (fact for fact in record.facts if fact.id == "kernel.traps")
    assert "write-trap" in record.channels
    assert record.t0 <= since
    epochs = [parse_epoch(each) for each in chain]
    demand = IntervalDemand(
        tuple(covered.name for covered in epochs[0].ranges),
        (CHANNEL,),
        uncovered=frozenset({"hidden-process"}),  # what this machine does not let us look into
        sampling=(1_000_000_000, 10_000_000_000),
    )
    verified = verify_interval(
        chain,
        epochs[1].t0,
        epochs[-1].t1,
        head=bytes.fromhex(str(fact.details["head"])),
        demand=demand,
    )
    assert verified.changes
    assert sum(len(epoch.sampling.times) for epoch in verified.epochs) >= 1
