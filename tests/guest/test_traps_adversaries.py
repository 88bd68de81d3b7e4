"""Every test adversary with write traps on: what they see at the moment that it is done.

Each is switched on and off again at once.  Polling sees it only if a look falls in between; the
traps see the writes themselves, if what is written is covered.  ``docs/traps.md`` is made from the
results (``UNDERCROFT_WRITE_DOCS=1``) and compared with them otherwise.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.formats.evidence.interval import Change
from undercroft.guests.attacks import PATCHED_FUNCTION, transient
from undercroft.guests.run import Guest, RunOptions
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.traps.attach import guard_kernel
from undercroft.securekernel.traps.guard import Guard
from undercroft.testing.adversaries import CASES, Case, Scene, staged

pytestmark = [pytest.mark.guest, pytest.mark.slow]

DOCUMENT = Path(__file__).parents[2] / "docs" / "traps.md"
PERIOD_S = 0.1
DWELLS_S = (0.001, 0.01, 0.03, 0.05, 0.09)
TRIES = 100
EVASION = "## What polling misses"
HEAD = """\
# Write traps against polling

Made by `tests/guest/test_traps_adversaries.py` on a real guest (QEMU's emulator, one thread).

## Every adversary, switched on and off again at once
*Polling* names the facts that see it if a look falls into the time in which it is on (see
[adversaries.md](adversaries.md)). *Traps* says what the write traps saw of the writes themselves,
however short they lasted. A lawful mechanism (a kprobe, the function tracer) is no violation: it
stands in the chain of epochs as a change, with its place and its bytes. What is no code and no
constant is not trapped.

| technique | polling, while it is on | traps |
|---|---|---|
"""


@pytest.fixture(scope="module")
def guest(start_guest: Callable[..., Guest]) -> Iterator[Guest]:
    started = start_guest(RunOptions(one_thread=True))
    yield started
    started.stop()


@pytest.fixture(scope="module")
def scene(guest: Guest, guest_home: Path) -> Iterator[Scene]:
    os.environ["UNDERCROFT_HOME"] = str(guest_home)
    target = wiring.open_target(f"qemu:{guest.info.name}")
    with staged(guest, SecureKernel(target.guest, target.image)) as made:
        yield made


@pytest.fixture(scope="module")
def rows() -> dict[str, str]:
    """Lines of the first table, by technique."""
    return {}


@pytest.fixture(scope="module")
def dwells() -> dict[float, float]:
    """The part of the transient changes that polling missed, by how long they lasted."""
    return {}


def guarded(scene: Scene, changes: list[Change]) -> Guard:
    qemu = scene.kernel.guest
    assert isinstance(qemu, QemuGuest)
    return guard_kernel(scene.kernel.proof, qemu.pid, qemu.host_ranges(), on_change=changes.append)


def settle(guard: Guard) -> None:
    deadline = time.monotonic() + 60
    while guard.status().pending:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def what_was_seen(changes: list[Change]) -> str:
    violations = sorted({change.range for change in changes if not change.lawful})
    if violations:
        return "violation, in " + ", ".join(f"`{name}`" for name in violations)
    rules = sorted({change.rule for change in changes})
    return "lawful change, logged: " + ", ".join(rules) if rules else "–"


@pytest.mark.parametrize("case", CASES, ids=[case.technique for case in CASES])
def test_what_the_traps_see_of_an_adversary(case: Case, scene: Scene, rows: dict[str, str]) -> None:
    changes: list[Change] = []
    with guarded(scene, changes) as guard:
        with case.attack(scene) as switch:
            settle(guard)
            changes.clear()  # what the loading of a module patches
            switch(True)
            switch(False)
            settle(guard)
        settle(guard)
    polling = ", ".join(f"`{fact}`" for fact in case.facts) or "–"
    rows[case.technique] = f"| {case.technique} | {polling} | {what_was_seen(changes)} |"
    if set(case.facts) & {"kernel.text", "kernel.rodata"}:
        assert any(not change.lawful for change in changes), case.technique


@pytest.mark.parametrize("dwell", DWELLS_S)
def test_polling_misses_what_theory_says(
    scene: Scene, dwells: dict[float, float], dwell: float
) -> None:
    """A change that lasts D is missed by looks every T with probability max(0, 1 - D/T)."""
    stop = threading.Event()
    looks, seen = 0, 0
    scene.kernel.proof.sweep()  # what was patched before is taken as it is now
    assert scene.kernel.proof.text_equal()

    def poll() -> None:
        nonlocal looks, seen
        due = time.monotonic()
        while not stop.is_set():
            due += PERIOD_S
            time.sleep(max(0.0, due - time.monotonic()))
            looks += 1
            seen += not scene.kernel.proof.text_equal()

    with transient(scene.guest, scene.address(PATCHED_FUNCTION) + 9) as adversary:
        poller = threading.Thread(target=poll)
        began = time.monotonic()
        poller.start()
        adversary.run(TRIES, dwell_ns=int(dwell * 1e9), gap_us=137_000)
        stop.set()
        poller.join()
        took = time.monotonic() - began
    assert looks
    # A late poller looks less often than it should: theory goes by how often it did.
    theory = max(0.0, 1 - dwell * looks / took)
    dwells[dwell] = max(0.0, 1 - seen / TRIES)
    dwells[-dwell] = theory


def test_the_document_says_what_was_found(rows: dict[str, str], dwells: dict[float, float]) -> None:
    written = DOCUMENT.read_text() if DOCUMENT.exists() else HEAD
    table = written.split(EVASION)[0]
    if len(rows) == len(CASES):
        table = HEAD + "".join(rows[case.technique] + "\n" for case in CASES) + "\n"
    if os.environ.get("UNDERCROFT_WRITE_DOCS") and len(dwells) == 2 * len(DWELLS_S):
        DOCUMENT.write_text(table + evasion(dwells))
    assert DOCUMENT.read_text().startswith(table)


def evasion(dwells: dict[float, float]) -> str:
    lines = [
        EVASION,
        f"A byte of code is changed for a time D and put back, {TRIES} times, while all code is",
        f"compared every T = {PERIOD_S * 1000:.0f} ms. Theory: max(0, 1 - D/T), with T as it was",
        "measured. With traps none was missed (`transient_caught` of `./dev bench traps`: 1,000 of",
        "1,000 that last 1 µs). One run, on a machine with other work to do:",
        "",
        "| D | missed, theory | missed, measured | missed with traps |",
        "|---|---|---|---|",
    ]
    lines += [
        f"| {dwell * 1000:g} ms | {dwells[-dwell]:.0%} | {dwells[dwell]:.0%} | 0 % |"
        for dwell in DWELLS_S
    ]
    return "\n".join(lines) + "\n"
