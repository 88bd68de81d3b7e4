"""False alarms: everything is checked, again and again, while the guest does what guests do.

`./dev test --soak MINUTES` sets how long; without it a minute in the slow tests.  What happens
meanwhile: processes fork and exec, a module comes and goes, tracers, kprobes and static keys are
turned on and off, a BPF program is loaded and unloaded, a CPU is unplugged and plugged.  One line
is printed for each minute, and for each finding that should not be.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import sys
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import Finding, Outcome
from undercroft.formats.kernel.module import decompress_module
from undercroft.guests.run import Guest, RunOptions
from undercroft.packages import Archive, EntryKind, read_deb
from undercroft.securekernel.inspect import SecureKernel

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MINUTES = float(os.environ.get("UNDERCROFT_SOAK_MINUTES", "1"))
MODULE = "dummy"
TRACING = "/sys/kernel/tracing"
EVENTS = f"{TRACING}/events/kprobes/enable"
CHURN = {
    "forks": "sleep 0 | cat >/dev/null; (sleep 0; sleep 0) & wait",
    "static keys": "for v in 1 0; do echo $v > /proc/sys/kernel/sched_schedstats; done; sleep 0.1",
    "tracer": f"for t in function nop; do echo $t > {TRACING}/current_tracer; sleep 0.5; done",
    "kprobes": f"for v in 1 0; do echo $v > {EVENTS}; sleep 0.3; done",
    "module": f"insmod /tmp/{MODULE}.ko; sleep 0.2; rmmod {MODULE}; sleep 0.1",
    "BPF": "/adversaries/bpf_tracer & sleep 0.5; kill $!; sleep 0.5",
    "CPU": "for v in 0 1; do echo $v > /sys/devices/system/cpu/cpu1/online; sleep 1; done",
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
    text = base64.b64encode(data).decode()
    guest.console(f": > {path}.b64")
    for start in range(0, len(text), 2000):
        guest.console(f"printf %s {text[start : start + 2000]} >> {path}.b64")
    guest.console(f"base64 -d {path}.b64 > {path}")


def start_churn(guest: Guest, home: Path) -> None:
    put_file(guest, f"/tmp/{MODULE}.ko", module_from_package(home, guest.info.kernel_release))
    guest.console(f"mount -t tracefs tracefs {TRACING} 2>/dev/null; true")
    guest.console(f"echo 'p:one do_sys_openat2' > {TRACING}/kprobe_events")
    guest.console(f"echo 'r:two vfs_read' >> {TRACING}/kprobe_events")
    for number, command in enumerate(CHURN.values()):
        guest.console(f"printf '%s\\n' {quoted(f'while :; do {command}; done')} > /tmp/{number}.sh")
        guest.console(f"sh /tmp/{number}.sh >/dev/null 2>&1 &")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def told(finding: Finding) -> str:
    shown = finding.details.get("anomalies") or finding.details.get("mismatches") or ""
    return f"{finding.id} {finding.outcome.value}: {finding.summary} {str(shown)[:600]}"


def test_nothing_honest_is_a_finding(
    start_guest: Callable[..., Guest], guest_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = start_guest(RunOptions(one_thread=True, memory_mb=1024))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        target = wiring.open_target(f"qemu:{guest.info.name}")
    kernel = SecureKernel(target.guest, target.image)
    start_churn(guest, guest_home)
    wrong: Counter[str] = Counter()
    looks, begun, reported = 0, time.monotonic(), 0.0
    while (passed := time.monotonic() - begun) < 60 * MINUTES:
        facts = kernel.facts()
        looks += 1
        bad = [one for one in facts if one.outcome is not Outcome.PASS and one.id not in LAWFUL]
        wrong += Counter(one.id for one in bad)
        with capsys.disabled():
            for one in bad:
                say(f"{passed:7.1f} s  {told(one)}")
            if passed - reported >= 60:
                reported = passed
                say(f"{passed:7.1f} s  {looks} looks at {len(facts)} facts, wrong: {dict(wrong)}")
    assert looks > MINUTES
    assert wrong == Counter()
