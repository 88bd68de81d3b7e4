"""What the multiplexer remembers of the guest, and what it counts."""

from __future__ import annotations

import enum
from collections import deque
from dataclasses import dataclass, field


@dataclass(slots=True)
class Counters:
    """What happened so far; reported with the evidence."""

    guest_commands: int = 0
    batches: int = 0
    inits: int = 0
    guest_connections: int = 0
    refused_localities: int = 0
    refused_commands: int = 0
    refused_control: int = 0
    upstream_losses: int = 0


class Startup(enum.Enum):
    """Whose TPM2_Startup counts.

    We start the TPM ourselves at _TPM_Init, so that the launch comes before anything the guest
    does; the guest's own Startup is then answered here.  After TPM2_Shutdown(STATE) the guest
    may want its state back, so its Startup goes to the TPM and the launch follows in that slot.
    """

    OURS = "answered by us"
    TO_TPM = "passed to the TPM"
    DONE = "done"


@dataclass(slots=True)
class GuestState:
    """What the guest and its hypervisor last asked for, and what happened of late."""

    locality: int = 0
    running: bool = False
    powered_on: bool = False
    startup: Startup = Startup.DONE
    orderly: bytes | None = None
    events: deque[tuple[int, str]] = field(default_factory=lambda: deque(maxlen=64))
