"""What the guest's side and the secure kernel's share: one TPM, and the memory of what happened."""

from __future__ import annotations

import time

from undercroft.base import EnvironmentFault, FormatError
from undercroft.securekernel.vtpm.arbiter import Arbiter, Busy
from undercroft.securekernel.vtpm.batch import BatchRunner
from undercroft.securekernel.vtpm.courtesy import Courtesy
from undercroft.securekernel.vtpm.keyfile import KeyFile
from undercroft.securekernel.vtpm.launch import Launcher
from undercroft.securekernel.vtpm.launchlog import LaunchConfig
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.resident import Resident
from undercroft.securekernel.vtpm.state import Counters, GuestState
from undercroft.securekernel.vtpm.upstream import Upstream


class SharedTpm:
    """One swtpm, whose turn it is, the launch, and what the guest last did."""

    def __init__(
        self, upstream: Upstream, launch: LaunchConfig | None, keys: KeyFile | None
    ) -> None:
        self.upstream = upstream
        self.arbiter = Arbiter()
        self.counters = Counters()
        self.guest = GuestState()
        self.courtesy = Courtesy()
        self.runner = BatchRunner(upstream.execute)
        self.launcher = Launcher(upstream, self.runner, launch, keys)
        self.resident = Resident(upstream.execute)

    def launch(self, reason: str) -> None:
        """Launch; a TPM that refuses is noted, and is the guest's TPM all the same.

        The caller holds the slot.  Raises VtpmUnavailable.
        """
        self.courtesy.end()
        try:
            self.launcher.perform(reason)
        except VtpmUnavailable:
            raise
        except (EnvironmentFault, FormatError) as fault:
            self.launcher.forget()
            self.note(f"the launch failed: {fault}")

    def note(self, event: str) -> None:
        """Remember an event, with the time in ns since the epoch."""
        self.guest.events.append((time.time_ns(), event))

    def lost(self, fault: VtpmUnavailable | Busy | FormatError) -> None:
        """Note why the TPM could not be asked, once for every loss."""
        newest = self.guest.events[-1][1] if self.guest.events else ""
        what = self.upstream.fault or str(fault)
        if newest != what:
            self.counters.upstream_losses += bool(self.upstream.fault)
            self.note(what)
