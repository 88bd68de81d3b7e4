"""One TPM, two users: the three sides of a multiplexer over one swtpm.

``guest`` runs the guest's commands, ``hypervisor`` answers the hypervisor's control requests,
``kernel`` does what the secure kernel asks for.  No sockets here but swtpm's own
(:class:`Upstream`); ``interposer`` listens and calls.
"""

from __future__ import annotations

from undercroft.base import JsonValue
from undercroft.securekernel.vtpm.guestside import GuestSide
from undercroft.securekernel.vtpm.hypervisorside import HypervisorSide
from undercroft.securekernel.vtpm.kernelside import KernelSide
from undercroft.securekernel.vtpm.keyfile import KeyFile
from undercroft.securekernel.vtpm.launchlog import LaunchConfig
from undercroft.securekernel.vtpm.shared import SharedTpm
from undercroft.securekernel.vtpm.state import Counters
from undercroft.securekernel.vtpm.upstream import Upstream


class Multiplexer:
    """Arbitrates one swtpm.  Every method of every side may be called from any thread."""

    def __init__(
        self,
        upstream: Upstream,
        launch: LaunchConfig | None = None,
        keys: KeyFile | None = None,
    ) -> None:
        self.tpm = SharedTpm(upstream, launch, keys)
        self.guest = GuestSide(self.tpm)
        self.hypervisor = HypervisorSide(self.tpm)
        self.kernel = KernelSide(self.tpm)
        self.confined_by: list[str] = []

    @property
    def counters(self) -> Counters:
        """What happened so far."""
        return self.tpm.counters

    def note(self, event: str) -> None:
        """Remember an event, with the time."""
        self.tpm.note(event)

    def status(self) -> dict[str, JsonValue]:
        """Return state and counters, for the secure kernel's record."""
        tpm = self.tpm
        return {
            "running": tpm.guest.running,
            "fault": tpm.upstream.fault,
            "guest_locality": tpm.guest.locality,
            "startup": tpm.guest.startup.value,
            "evictions": tpm.runner.evictions,
            "launch": tpm.launcher.number,
            "launch_reason": tpm.launcher.reason,
            "log_size": tpm.launcher.log_size,
            "confined_by": list(self.confined_by),
            **{name: getattr(tpm.counters, name) for name in Counters.__slots__},
            "events": [[when, what] for when, what in tpm.guest.events],
        }
