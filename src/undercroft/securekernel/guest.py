"""The port to one guest: its memory, its vCPUs, and whether it still lives.

A hypervisor backend implements :class:`Guest`; the facts in ``linux`` and ``arch`` see the
memory and the vCPU values only.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Protocol

from undercroft.base import EnvironmentFault
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.vcpu import VcpuState


class GuestGone(EnvironmentFault):
    """The guest's hypervisor process ended, or its control socket closed for good."""


class Guest(Protocol):
    """One guest, seen from outside.  Every method raises GuestGone when the guest has ended."""

    @property
    def name(self) -> str:
        """The guest's name, for a person."""

    @property
    def memory(self) -> PhysicalMemory:
        """The guest's physical memory."""

    @property
    def channels(self) -> tuple[str, ...]:
        """How this guest is seen (``memory:shared-file``, ``registers:device-state``)."""

    def vcpus(self) -> tuple[VcpuState, ...]:
        """Return the registers of every vCPU, all of one instant; empty if none are known."""

    def cpuid(self) -> tuple[Mapping[tuple[int, int, str], int], ...]:
        """Return the feature registers that each vCPU is shown, by leaf, subleaf and register.

        Empty if nobody can tell.
        """

    def paused(self) -> AbstractContextManager[None]:
        """Hold every vCPU still inside the ``with`` block.  May be nested."""

    def check_alive(self) -> None:
        """Return if the guest still runs, raise GuestGone if it does not."""
