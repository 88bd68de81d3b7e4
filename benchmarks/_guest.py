"""A real guest for benchmarks: started fresh, stopped at the end."""

from __future__ import annotations

import datetime as dt
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from undercroft import wiring
from undercroft.guests.accel import choose
from undercroft.guests.build import build_micro
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.run import Guest, RunOptions, start
from undercroft.packages import Archive
from undercroft.reference.model import ReferenceSet
from undercroft.service.ownguest import planned_references

ADVERSARIES = Path(__file__).parents[1] / "tests" / "adversaries"


@dataclass(frozen=True, slots=True)
class BenchGuest:
    """A running guest, what it was built from, and when its process was started."""

    guest: Guest
    build: GuestBuild
    references: ReferenceSet
    started: float


@contextmanager
def bench_guest(name: str, options: RunOptions | None = None) -> Iterator[BenchGuest]:
    """Start the guest ``name``; its references are derived before, as they are in service.

    ``started`` is on the monotonic clock, just before the first process is started.
    """
    home, options = wiring.home(), options or RunOptions()
    archive = Archive(home / "apt", now=dt.datetime.now(dt.UTC))
    build = build_micro(archive, home, adversaries=ADVERSARIES)
    accel = choose(options.accel, home, build.kernel.path).accel
    references = planned_references(build, options, accel, home)
    started = time.monotonic()
    guest = start(build, home, name, options, now=dt.datetime.now(dt.UTC))
    try:
        guest.wait_ready(120.0)
        yield BenchGuest(guest, build, references, started)
    finally:
        guest.stop()
        guest.remove()
