"""The state of one virtual CPU, as the hypervisor tells it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class DescriptorTable:
    """The base (a guest-virtual address) and limit (size - 1) of the IDT or GDT."""

    base: int
    limit: int


@dataclass(frozen=True, slots=True)
class VcpuState:
    """Registers of one vCPU (Intel SDM vol. 3, 2.1 and 2.5; all values unsigned).

    None stands where the backend cannot read a register: a dump holds no MSRs and no debug
    registers, a monitor may not tell MSRs.  ``dr`` holds DR0..DR3, DR6, DR7.
    """

    index: int
    rip: int
    cpl: int
    cr0: int
    cr3: int
    cr4: int
    efer: int | None
    idtr: DescriptorTable
    gdtr: DescriptorTable
    dr: tuple[int, int, int, int, int, int] | None
    lstar: int | None
    cstar: int | None
    sysenter_eip: int | None
