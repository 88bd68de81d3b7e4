# ruff: noqa: A005 - a benchmark is named after what it measures
"""Every fact about a guest of 1 GiB with 100 processes: how long it takes, how long it pauses.

``inspect_first_s``
    from nothing but the guest's name and its kernel package: attaching, the expected image, and
    every fact once;
``inspect_again_s``
    every fact again, on what is known by then;
``cpu_state_pause_ms``
    how long all vCPUs stand still for their registers, MSRs included: from QEMU's answer to
    ``stop`` to its answer to ``cont``.
"""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import cast

from benchmarks._guest import ADVERSARIES
from benchmarks.figures import Against, Figure, from_samples, timed
from undercroft import wiring
from undercroft.base import Outcome
from undercroft.guests.build import build_micro
from undercroft.guests.run import Guest, RunOptions, start
from undercroft.packages import Archive
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel

MEMORY_MB = 1024
PROCESSES = 100
FIRST, AGAIN, PAUSES = 5, 30, 200


def run() -> list[Figure]:
    """Return the figures."""
    with _guest() as guest:
        _start_processes(guest)
        name = f"qemu:{guest.info.name}"
        first = timed(partial(_inspect, name), n=FIRST, warm_up=1)
        kernel = _inspect(name)
        again = timed(partial(_check, kernel), n=AGAIN)
        pauses = _pauses(cast(QemuGuest, kernel.guest))
    return [
        from_samples("inspect_first_s", "s", first, against=Against("limit", 3)),
        from_samples("inspect_again_s", "s", again, against=Against("limit", 0.5)),
        from_samples(
            "cpu_state_pause_ms", "ms", [1000 * s for s in pauses], against=Against("limit", 5)
        ),
    ]


@contextmanager
def _guest() -> Iterator[Guest]:
    now, home = dt.datetime.now(dt.UTC), wiring.home()
    build = build_micro(Archive(home / "apt", now=now), home, adversaries=ADVERSARIES)
    guest = start(build, home, "bench-inspect", RunOptions(memory_mb=MEMORY_MB), now=now)
    try:
        guest.wait_ready(120.0)
        yield guest
    finally:
        guest.stop()
        guest.remove()


def _start_processes(guest: Guest) -> None:
    guest.console(f"for n in $(seq {PROCESSES}); do sleep 100000 >/dev/null 2>&1 & done")
    running = int(guest.console("pidof sleep | wc -w"))
    if running < PROCESSES:
        raise RuntimeError(f"{PROCESSES} processes were to run, and {running} do")


def _inspect(name: str) -> SecureKernel:
    target = wiring.open_target(name)
    kernel = SecureKernel(target.guest, target.image, target.kernel.library, target.files)
    _check(kernel)
    return kernel


def _check(kernel: SecureKernel) -> None:
    wrong = [fact for fact in kernel.facts() if fact.outcome is not Outcome.PASS]
    if wrong:
        raise RuntimeError(f"the honest guest did not pass: {wrong[0].id}: {wrong[0].summary}")


def _pauses(guest: QemuGuest) -> list[float]:
    """Return the length of the pause of each of many looks at the registers."""
    lengths: list[float] = []

    @contextmanager
    def measured() -> Iterator[None]:
        with original():
            start = time.perf_counter()
            yield
        lengths.append(time.perf_counter() - start)

    original = guest.paused
    guest.paused = measured  # type: ignore[method-assign]
    for _ in range(PAUSES):
        guest.vcpus()
    return lengths
