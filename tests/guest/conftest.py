"""Real guests for tests.  A machine that cannot run one fails these tests; it does not skip them.

Built guests and packages are kept where `./dev` keeps them (UNDERCROFT_HOME, else `build/`), so
that only the first run fetches and builds.
"""

from __future__ import annotations

import datetime as dt
import itertools
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft.guests.build import build_micro
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.run import Guest, RunOptions, start
from undercroft.packages import Archive

REPOSITORY = Path(__file__).parents[2]
READY_TIMEOUT_S = 120.0
"""A guest is up in 9 s; a machine that does other things as well takes longer."""

StartGuest = Callable[..., Guest]


@pytest.fixture(scope="session")
def guest_home() -> Path:
    """The folder for guests and packages."""
    home = Path(os.environ.get("UNDERCROFT_HOME") or REPOSITORY / "build").absolute()
    home.mkdir(parents=True, exist_ok=True)
    return home


@pytest.fixture(scope="session")
def micro_build(guest_home: Path) -> GuestBuild:
    """The micro guest, built from packages, with the test adversaries."""
    archive = Archive(guest_home / "apt", now=dt.datetime.now(dt.UTC))
    return build_micro(archive, guest_home, adversaries=REPOSITORY / "tests" / "adversaries")


@pytest.fixture(scope="session")
def start_guest(guest_home: Path, micro_build: GuestBuild) -> Iterator[StartGuest]:
    """A function that starts a guest of its own for one test: start_guest(RunOptions(...)).

    With ``wait=False`` it returns while the guest boots.  All are stopped at the end.
    """
    numbers = itertools.count(1)
    started: list[Guest] = []

    def start_one(options: RunOptions | None = None, *, wait: bool = True) -> Guest:
        name = f"test-{os.getpid()}-{next(numbers)}"
        now = dt.datetime.now(dt.UTC)
        guest = start(micro_build, guest_home, name, options, now=now)
        started.append(guest)
        if wait:
            guest.wait_ready(READY_TIMEOUT_S)
        return guest

    yield start_one
    for guest in started:
        guest.stop()
        guest.remove()


@pytest.fixture(scope="session")
def running_guest(start_guest: StartGuest) -> Guest:
    """One guest for every test that leaves it as it was: change nothing, or put it back."""
    return start_guest()
