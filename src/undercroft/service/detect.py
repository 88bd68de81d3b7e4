"""How long it takes from a change in guest memory until a look finds it."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from undercroft.base import EnvironmentFault, Finding, Outcome
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.inspect import SecureKernel

TIMEOUT_S = 20.0
_WATCH_S = 0.0002


@dataclass(frozen=True, slots=True)
class Detection:
    """What was found and when: ``changed`` and ``found`` on the monotonic clock, in seconds."""

    finding: Finding
    changed: float
    found: float

    @property
    def seconds(self) -> float:
        """From the change to the finding."""
        return self.found - self.changed


class ByteWatch:
    """Notes when bytes of guest memory change, to a fraction of a millisecond.

    It serves measuring only: it knows the one place to look at, which a detector does not.
    """

    def __init__(self, kernel: SecureKernel, vaddr: int, size: int = 8) -> None:
        located = kernel.proof.kernel
        if located is None:
            raise EnvironmentFault("the kernel is not located", where=kernel.guest.name)
        memory = kernel.guest.memory
        paddr = AddressSpace(memory, located.cr3, located.la57).translate(vaddr)
        self._view = memory.view(paddr, size)
        self._before = bytes(self._view)
        self.changed: float | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def _watch(self) -> None:
        while not self._stop.is_set():
            if self._view != self._before:
                self.changed = time.monotonic()
                return
            time.sleep(_WATCH_S)

    def __enter__(self) -> ByteWatch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()


def poll_until_failed(
    look: Callable[[], list[Finding]],
    finding_id: str,
    *,
    interval: float,
    timeout: float = TIMEOUT_S,
) -> tuple[Finding, float]:
    """Look every ``interval`` seconds until ``finding_id`` fails; return it and when.

    Raises EnvironmentFault if it does not within ``timeout`` seconds.
    """
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        started = time.monotonic()
        for finding in look():
            if finding.id == finding_id and finding.outcome is Outcome.FAIL:
                return finding, time.monotonic()
        time.sleep(max(0.0, interval - (time.monotonic() - started)))
    raise EnvironmentFault(
        "what was done to the guest was not found",
        where=finding_id,
        expected=f"a finding within {timeout:.0f} s",
    )
