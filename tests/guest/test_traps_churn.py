"""Write traps for minutes while the guest patches itself in every way: nothing is a violation.

`UNDERCROFT_CHURN_MINUTES` sets how long (10).  One line is printed for each minute.
"""

from __future__ import annotations

import base64
import datetime as dt
import gzip
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import Finding, Outcome
from undercroft.formats.evidence.interval import Change, parse_epoch
from undercroft.formats.kernel import KernelModule
from undercroft.formats.kernel.module import decompress_module, parse_module
from undercroft.guests.run import Guest, RunOptions
from undercroft.packages import Archive, EntryKind, read_deb
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.traps.guard import Mode
from undercroft.verify.interval import verify_chain

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MINUTES = float(os.environ.get("UNDERCROFT_CHURN_MINUTES", "10"))
MODULE = "dummy"
TRACING = "/sys/kernel/tracing"
EVENTS = f"{TRACING}/events/kprobes/enable"
CHURN = {
    "forks": "sleep 0 | cat >/dev/null; (sleep 0; sleep 0) & wait",
    "static keys": "for v in 1 0; do echo $v > /proc/sys/kernel/sched_schedstats; done; sleep 0.3",
    "tracer": f"for t in function nop; do echo $t > {TRACING}/current_tracer; sleep 1; done",
    "events": f"for v in 1 0; do echo $v > {TRACING}/events/sched/enable; sleep 0.7; done",
    "kprobes": f"for v in 1 0; do echo $v > {EVENTS}; sleep 0.5; done",
    "module": f"insmod /tmp/{MODULE}.ko; sleep 1.5; rmmod {MODULE}; sleep 0.3",
    "BPF": "/adversaries/bpf_tracer & sleep 0.5; kill $!; sleep 0.5",
    "CPU": "for v in 0 1; do echo $v > /sys/devices/system/cpu/cpu1/online; sleep 2; done",
}
LAWFUL = {"kernel.bpf.watchers"}
"""For a person to judge: it tells of the BPF program, rightly."""


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


def start_churn(guest: Guest) -> None:
    guest.console(f"mount -t tracefs tracefs {TRACING} 2>/dev/null; true")
    guest.console(f"echo 'vfs_*' > {TRACING}/set_ftrace_filter; true")
    guest.console(f"echo 'p:one do_sys_openat2+20' > {TRACING}/kprobe_events || true")
    guest.console(f"echo 'r:two vfs_read' >> {TRACING}/kprobe_events || true")
    for number, command in enumerate(CHURN.values()):
        looped = f"while :; do {command}; done".replace("'", "'\\''")
        guest.console(f"printf '%s\\n' '{looped}' > /tmp/{number}.sh")
        guest.console(f"sh /tmp/{number}.sh >/dev/null 2>&1 &")


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def told(finding: Finding) -> str:
    seen = finding.details.get("seen") or finding.details.get("mismatches") or ""
    return f"{finding.id} {finding.outcome.value}: {finding.summary} {str(seen)[:900]}"


def changes_of(chain: tuple[bytes, ...]) -> list[Change]:
    return [change for each in chain for change in parse_epoch(each).changes]


def test_ten_minutes_of_churn_are_lawful(
    start_guest: Callable[..., Guest], guest_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = start_guest(RunOptions(one_thread=True, memory_mb=1024))
    content = parse_module(data := module_from_package(guest_home, guest.info.kernel_release))
    put_file(guest, f"/tmp/{MODULE}.ko", data)

    def library(name: str) -> KernelModule | None:
        return content if name == MODULE else None

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        target = wiring.open_target(f"qemu:{guest.info.name}")
    assert isinstance(target.guest, QemuGuest)
    with TrappedKernel(target.guest, target.image, Mode.OBSERVE, library=library) as trapped:
        start_churn(guest)
        begun, reported, looks = time.monotonic(), 0.0, 0
        wrong: Counter[str] = Counter()
        while (passed := time.monotonic() - begun) < 60 * MINUTES:
            bad = [
                fact
                for fact in (*trapped.proof.sweep(), trapped.now())
                if fact.outcome is Outcome.FAIL and fact.id not in LAWFUL
            ]
            looks += 1
            new = [fact for fact in bad if not wrong[fact.summary]]
            wrong += Counter(fact.summary for fact in bad)
            with capsys.disabled():
                for fact in new:
                    say(f"{passed:7.1f} s  {told(fact)}")
                if passed - reported >= 60:
                    reported = passed
                    status = trapped.guard.status()
                    say(
                        f"{passed:7.1f} s  {looks} looks, {status.writes} writes, "
                        f"{status.lawful} lawful changes, {status.violations} violations, "
                        f"{len(trapped.guard.chain())} epochs"
                    )
            time.sleep(0.5)
        assert guest.console("echo alive", timeout_s=120) == "alive"
        status = trapped.guard.status()
    chain = trapped.guard.chain()
    changes = changes_of(chain)
    with capsys.disabled():
        say(f"changes by mechanism: {dict(Counter(change.rule for change in changes))}")
        say(f"by range: {dict(Counter(change.range for change in changes))}")
        say(f"blind: {Counter(w.reason[:40] for e in chain for w in parse_epoch(e).blind)}")
        for change in [change for change in changes if not change.lawful][:20]:
            say(f"UNLAWFUL {change}")
    assert (status.violations, status.ended, status.fault) == (0, "", "")
    assert wrong == Counter()
    assert {"jump-label", "static-call"} <= {change.rule for change in changes}
    verify_chain(chain, trapped.guard.journal.head)
