"""False alarms: everything is checked, again and again, while the guest does what guests do.

`./dev test --soak MINUTES` sets how long; without it a minute in the slow tests.  What happens
meanwhile, all at once: processes fork and exec, modules come and go, tracers, kprobes (at a
function's entry and return, in its middle, optimised) and static keys are turned on and off, a
BPF program is loaded and unloaded, a CPU is unplugged and plugged.

Every line of the log is one look at every fact, with the sweeps of the kernel's code since the
last one.  Once a minute we attach anew, in the midst of it, and the log says how often the guest
has done each of its activities.  It is kept in the folder for guests as ``soak.log``.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TextIO

import pytest

from undercroft import wiring
from undercroft.base import EnvironmentFault, Finding, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.formats.kernel.module import decompress_module
from undercroft.guests.run import Guest, RunOptions
from undercroft.packages import Archive, EntryKind, read_deb
from undercroft.reference.kernel.insn import decode
from undercroft.securekernel.inspect import SecureKernel

pytestmark = [pytest.mark.guest, pytest.mark.slow]

MINUTES = float(os.environ.get("UNDERCROFT_SOAK_MINUTES", "1"))
SWEEPING_S = 2.0
"""Seconds in which only the kernel's code is looked at, between two looks at everything."""
MODULES = ("dummy", "tls")
PROBED = "do_sys_openat2"
TRACING = "/sys/kernel/tracing"
CHURN = {
    "forks": "sleep 0 | cat >/dev/null; (sleep 0; sleep 0) & wait",
    "static keys": "for v in 1 0; do echo $v > /proc/sys/kernel/sched_schedstats; done; sleep 0.1",
    "tracers": f"for t in function nop function_graph nop; do "
    f"echo $t > {TRACING}/current_tracer; sleep 0.5; done",
    "events": f"for v in 1 0; do echo $v > {TRACING}/events/sched/enable; sleep 0.5; done",
    "kprobes": f"for v in 1 0; do for p in entry return; do "
    f"echo $v > {TRACING}/events/kprobes/$p/enable; done; sleep 0.3; done",
    "kprobes in the middle": f"for v in 1 0; do for p in first second; do "
    f"echo $v > {TRACING}/events/kprobes/$p/enable; done; sleep 0.7; done",
    "kprobes come and go": f"echo p:third {PROBED}+$third >> {TRACING}/kprobe_events; "
    f"for v in 1 0; do echo $v > {TRACING}/events/kprobes/third/enable; sleep 0.5; done; "
    f"echo -:third >> {TRACING}/kprobe_events; sleep 0.2",
    "modules": " ".join(f"insmod /tmp/{name}.ko;" for name in MODULES)
    + " sleep 0.2; "
    + " ".join(f"rmmod {name};" for name in reversed(MODULES))
    + " sleep 0.1",
    "BPF": "/adversaries/bpf_tracer & sleep 0.5; kill $!; sleep 0.5",
    "CPU": "for v in 0 1; do echo $v > /sys/devices/system/cpu/cpu1/online; sleep 1; done",
}
LAWFUL = {"kernel.bpf.watchers"}
"""For a person to judge: it tells of the BPF program, rightly."""


def modules_from_package(home: Path, release: str) -> dict[str, bytes]:
    """Return the modules' bytes from the kernel's own package."""
    package = Archive(home / "apt", now=dt.datetime.now(dt.UTC)).fetch(f"linux-image-{release}")
    wanted = {f"/{name}.ko": name for name in MODULES}
    found = {
        wanted[f"/{Path(entry.path).name.removesuffix('.xz')}"]: decompress_module(entry.data)
        for entry in read_deb(
            package.path.read_bytes(),
            lambda path: f"/{Path(path).name.removesuffix('.xz')}" in wanted,
        )
        if entry.kind is EntryKind.FILE
    }
    assert set(found) == set(MODULES)
    return found


def put_file(guest: Guest, path: str, data: bytes) -> None:
    """Write a file in the guest, through its console."""
    text = base64.b64encode(data).decode()
    guest.console(f": > {path}.b64")
    for start in range(0, len(text), 2000):
        guest.console(f"printf %s {text[start : start + 2000]} >> {path}.b64")
    guest.console(f"base64 -d {path}.b64 > {path}")


def inside(image: KernelImage, function: str) -> list[int]:
    """Return the offsets of three instructions in a function, for probes that are not at its start.

    The compiled code has as many bytes as the patched one at every place.
    """
    start = at = image.offset(function)
    found: list[int] = []
    while len(found) < 3:
        insn = decode(image.read(at, 15))
        assert insn is not None
        at += insn.length
        if at - start > 24 * (len(found) + 1):
            found.append(at - start)
    return found


def start_churn(guest: Guest, image: KernelImage, home: Path) -> None:
    for name, data in modules_from_package(home, guest.info.kernel_release).items():
        put_file(guest, f"/tmp/{name}.ko", data)
    guest.console(f"mount -t tracefs tracefs {TRACING} 2>/dev/null; true")
    first, second, third = inside(image, PROBED)
    for probe in (
        f"p:entry {PROBED}",
        "r:return vfs_read",
        f"p:first {PROBED}+{first:#x}",
        f"p:second {PROBED}+{second:#x}",
    ):
        guest.console(f"echo '{probe}' >> {TRACING}/kprobe_events")
    assert guest.console(f"wc -l < {TRACING}/kprobe_events").strip() == "4"
    for number, command in enumerate(CHURN.values()):
        count = f"n=$((n+1)); echo $n > /tmp/{number}.rounds"
        loop = f"third={third:#x}; n=0; while :; do {command}; {count}; done"
        guest.console(f"printf '%s\\n' {quoted(loop)} > /tmp/{number}.sh")
        guest.console(f"sh /tmp/{number}.sh >/dev/null 2>&1 &")


def quoted(text: str) -> str:
    return "'" + text.replace("'", "'\\''") + "'"


def rounds(guest: Guest) -> str:
    """Return how often the guest has done each activity; a busy console may not answer."""
    try:
        text = guest.console("for i in /tmp/*.rounds; do echo $i $(cat $i); done", timeout_s=60)
    except EnvironmentFault as fault:
        return f"the guest's console does not answer: {fault}"
    words = text.split()
    counts = {Path(path).stem: count for path, count in zip(words[::2], words[1::2], strict=False)}
    return ", ".join(f"{name} {counts.get(str(at), 0)}" for at, name in enumerate(CHURN))


class Log:
    """Writes lines to the terminal and to a file."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._begun = time.monotonic()

    @property
    def passed(self) -> float:
        """Seconds since it began."""
        return time.monotonic() - self._begun

    def say(self, text: str) -> None:
        line = f"{self.passed:7.1f} s  {text}\n"
        for stream in (self._stream, sys.stdout):
            stream.write(line)
            stream.flush()


def told(finding: Finding) -> str:
    shown = finding.details.get("anomalies") or finding.details.get("mismatches") or ""
    return f"{finding.id} {finding.outcome.value}: {finding.summary} {str(shown)[:1500]}"


def bad(findings: Iterable[Finding]) -> list[Finding]:
    return [one for one in findings if one.outcome is not Outcome.PASS and one.id not in LAWFUL]


def soak(guest: Guest, attach: Callable[[], SecureKernel], log: Log) -> Counter[str]:
    """Look until the time is over; return how often each fact was not what it should be."""
    wrong: Counter[str] = Counter()
    looks = swept = settled = 0
    reported = 0.0
    kernel = attach()
    with ThreadPoolExecutor(1) as console:
        asked = console.submit(rounds, guest)
        while log.passed < 60 * MINUTES:
            sweeps, slowest, until = 0, 0.0, time.monotonic() + SWEEPING_S
            found: list[Finding] = []
            while time.monotonic() < until:
                begun = time.monotonic()
                found += bad(kernel.sweep())
                slowest = max(slowest, time.monotonic() - begun)
                sweeps += 1
            begun = time.monotonic()
            facts = kernel.facts()
            took = time.monotonic() - begun
            looks, swept = looks + 1, swept + sweeps
            found += bad(facts)
            wrong += Counter(one.id for one in found)
            for one in found:
                log.say(told(one))
            log.say(
                f"look {looks}: {len(facts)} facts in {took:.2f} s; {sweeps} sweeps, the slowest "
                f"{slowest:.2f} s; settled {kernel.proof.settled}; wrong {len(found)}"
            )
            if asked.done() and log.passed - reported >= 60:
                reported = log.passed
                log.say(f"rounds: {asked.result()}; attaching anew")
                asked = console.submit(rounds, guest)
                settled += kernel.proof.settled
                kernel = attach()
        settled += kernel.proof.settled
    log.say(f"rounds: {rounds(guest)}")
    log.say(
        f"{MINUTES:g} minutes: {looks} looks at every fact, {swept} sweeps of the kernel's code, "
        f"{settled} differences settled; findings: {dict(wrong) or 0}"
    )
    assert looks > MINUTES
    return wrong


def test_nothing_honest_is_a_finding(
    start_guest: Callable[..., Guest], guest_home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guest = start_guest(RunOptions(one_thread=True, memory_mb=1024))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        target = wiring.open_target(f"qemu:{guest.info.name}")

    def attach() -> SecureKernel:
        return SecureKernel(target.guest, target.image, target.kernel.library)

    start_churn(guest, target.image, guest_home)
    with capsys.disabled(), (guest_home / "soak.log").open("w") as stream:
        log = Log(stream)
        log.say(f"Linux {target.image.release}: {', '.join(CHURN)}")
        wrong = soak(guest, attach, log)
    assert wrong == Counter()


def test_a_guest_that_boots_is_never_called_wrong(
    start_guest: Callable[..., Guest], guest_home: Path
) -> None:
    """From its firmware on: nothing is known until the kernel is up, and then all is well."""
    guest = start_guest(RunOptions(one_thread=True), wait=False)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        target = wiring.open_target(f"qemu:{guest.info.name}")
    kernel = SecureKernel(target.guest, target.image, target.kernel.library)
    until = time.monotonic() + 300
    seen: Counter[str] = Counter()
    while kernel.proof.kernel is None:
        assert time.monotonic() < until, seen
        for finding in kernel.sweep():
            seen[f"{finding.id} {finding.outcome.value}: {finding.summary}"] += 1
            assert finding.outcome is not Outcome.FAIL, finding
    guest.wait_ready(300)
    assert bad(kernel.facts()) == []
