"""The test adversaries, at the moment that we choose, in a guest of ours that will be thrown away.

What they are is told in tests/adversaries/README.md; they are compiled into the micro guest and
loaded only from here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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
    control: str = ""
    """The file that switches it, if it is not the module's parameter ``active``."""

    def switch(self, on: bool) -> None:
        """Do it, or undo it."""
        control = self.control or f"/sys/module/{self.module}/parameters/active"
        self.guest.console(f"echo {int(on)} > {control}")


@contextmanager
def _loaded(guest: Guest, module: str, parameters: str, control: str = "") -> Iterator[Adversary]:
    guest.console(f"insmod /adversaries/{module}.ko {parameters}")
    try:
        yield Adversary(guest, module, control)
    finally:
        if guest.is_alive():
            guest.console(f"rmmod {module}")


def load(
    guest: Guest, module: str, parameters: Mapping[str, int | str] | None = None
) -> AbstractContextManager[Adversary]:
    """Load a test module with ``parameters``, switched off."""
    given = " ".join(
        f"{name}={value}" if isinstance(value, str) else f"{name}={value:#x}"
        for name, value in (parameters or {}).items()
    )
    return _loaded(guest, module, given)


def hide_module(guest: Guest, tree: int = 0) -> AbstractContextManager[Adversary]:
    """Load the module that hides itself; from the tree at ``tree`` (mod_tree) too, if given."""
    control = "/sys/kernel/debug/hide_module"
    return _loaded(guest, "hide_module", f"tree={tree:#x}", control)


@contextmanager
def running(guest: Guest, command: str) -> Iterator[int]:
    """Run a command in the guest's background for as long as the block; give its pid."""
    pid = int(guest.console(f"{command} >/dev/null 2>&1 & echo $!"))
    try:
        yield pid
    finally:
        if guest.is_alive():
            guest.console(f"kill {pid}; wait {pid}; true")


def inline_patch(guest: Guest, address: int) -> AbstractContextManager[Adversary]:
    """Load the module that overwrites the first bytes of the kernel function at ``address``."""
    return _loaded(guest, "inline_patch", f"target={address:#x}")


def hide_task(guest: Guest, pid: int) -> AbstractContextManager[Adversary]:
    """Load the module that unlinks process ``pid`` from the lists that tools read."""
    return _loaded(guest, "hide_task", f"pid={pid} from_ps=1")


def pid_of(guest: Guest, name: str) -> int:
    """Return the pid of a process of the guest, by its name, as the guest tells it."""
    return int(guest.console(f"pidof {name}").split()[0])


@dataclass(frozen=True, slots=True)
class Transient:
    """The loaded module that changes a byte for a moment."""

    guest: Guest

    def run(self, count: int, *, dwell_ns: int = 1000, gap_us: int = 1000) -> None:
        """Change the byte ``count`` times; return when that is done."""
        folder = "/sys/module/transient/parameters"
        self.guest.console(
            f"echo {dwell_ns} > {folder}/dwell_ns; echo {gap_us} > {folder}/gap_us; "
            f"echo {count} > {folder}/run",
            timeout_s=60 + count * (dwell_ns / 1e9 + gap_us / 1e6 + 0.05),
        )


@contextmanager
def transient(guest: Guest, address: int, mask: int = 1) -> Iterator[Transient]:
    """Load the module that flips the bits ``mask`` of the kernel's byte at ``address``."""
    with _loaded(guest, "transient", f"target={address:#x} mask={mask}"):
        yield Transient(guest)
