"""The machine under a guest: is what QEMU says it runs still what the launch described?"""

from __future__ import annotations

from undercroft.base import EnvironmentFault, Finding, FormatError, Outcome
from undercroft.formats.descriptor import parse_descriptor
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.launch import PCR_IDENTITY, VM_DESCRIPTOR, parse_launch_event
from undercroft.guests.info import GuestInfo
from undercroft.securekernel.guest import GuestGone
from undercroft.securekernel.hypervisor.machine import compare_machine, read_machine
from undercroft.securekernel.vtpm.client import VtpmClient


def machine_facts(info: GuestInfo, client: VtpmClient) -> tuple[Finding, ...]:
    """Return the facts about how the machine differs from the descriptor that was measured.

    None where no descriptor was measured.  Raises GuestGone if the guest ended.
    """
    measured = measured_descriptor(client.current_launch_log())
    if measured is None:
        return ()
    try:
        return compare_machine(parse_descriptor(measured), read_machine(info.qmp))
    except GuestGone:
        raise
    except (EnvironmentFault, FormatError) as fault:
        what = f"the machine could not be compared with its descriptor: {fault}"
        return (Finding("descriptor.machine", Outcome.UNKNOWN, what),)


def measured_descriptor(launch_log: bytes) -> bytes | None:
    """Return the descriptor in a launch's log, or None if it has none.  Raises FormatError."""
    if not launch_log:
        return None
    for event in parse_eventlog(launch_log).events[1:]:
        if event.pcr == PCR_IDENTITY:
            measured = parse_launch_event(event.data)
            if measured.name == VM_DESCRIPTOR:
                return measured.data
    return None
