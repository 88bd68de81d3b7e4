"""The test adversaries, at the moment that we choose, in a guest of ours that will be thrown away.

What they are is told in tests/adversaries/README.md; they are compiled into the micro guest and
loaded only from here.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

from undercroft.guests.run import Guest

PATCHED_FUNCTION = "__x64_sys_getpgid"
"""What the demonstration patches: a system call that nothing in the micro guest makes."""

HIDDEN_PROCESS = "worker"


@dataclass(frozen=True, slots=True)
class Adversary:
    """A loaded test module that can be switched on and off."""

    guest: Guest
    module: str

    def switch(self, on: bool) -> None:
        """Do it, or undo it."""
        parameter = f"/sys/module/{self.module}/parameters/active"
        self.guest.console(f"echo {int(on)} > {parameter}")


@contextmanager
def _loaded(guest: Guest, module: str, parameters: str) -> Iterator[Adversary]:
    guest.console(f"insmod /adversaries/{module}.ko {parameters}")
    yield Adversary(guest, module)
    if guest.is_alive():
        guest.console(f"rmmod {module}")


def inline_patch(guest: Guest, address: int) -> AbstractContextManager[Adversary]:
    """Load the module that overwrites the first bytes of the kernel function at ``address``."""
    return _loaded(guest, "inline_patch", f"target={address:#x}")


def hide_task(guest: Guest, pid: int) -> AbstractContextManager[Adversary]:
    """Load the module that unlinks process ``pid`` from the lists that tools read."""
    return _loaded(guest, "hide_task", f"pid={pid} from_ps=1")


def pid_of(guest: Guest, name: str) -> int:
    """Return the pid of a process of the guest, by its name, as the guest tells it."""
    return int(guest.console(f"pidof {name}").split()[0])
