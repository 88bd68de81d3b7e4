"""Put a guard over a located kernel: what to protect, and how to judge writes to its text."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path

from undercroft.base import EnvironmentFault, Outcome
from undercroft.formats.evidence.interval import Change, Uncovered
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.canvas import Canvas
from undercroft.securekernel.arch.x86_64.paging import AddressSpace
from undercroft.securekernel.linux.locate import LocatedKernel
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.traps.channels import uncovered_channels
from undercroft.securekernel.traps.explain import Explainer
from undercroft.securekernel.traps.guard import EPOCH_S, Guard, Machine, Mode
from undercroft.securekernel.traps.judge import TextJudge
from undercroft.securekernel.traps.regions import kernel_regions, requested_regions
from undercroft.securekernel.traps.sites import kernel_sites
from undercroft.securekernel.traps.writetrap import HostRange, Lend

SYSTEM_RUNNING = 3
"""enum system_states in include/linux/kernel.h, since 5.16."""


class StillBootingError(EnvironmentFault):
    """The guest runs no kernel yet that could be guarded; it may, later."""


def is_unknown(proof: KernelTextProof) -> bool:
    """Tell whether no kernel was found, rather than a wrong one."""
    return proof.located.outcome is Outcome.UNKNOWN


def guard_kernel(
    proof: KernelTextProof,
    pid: int,
    ranges: Sequence[HostRange],
    *,
    mode: Mode = Mode.OBSERVE,
    more: Sequence[str] = (),
    despite_tcg: bool = False,
    machine: Machine | None = None,
    lend: Lend | None = None,
    epoch_s: float = EPOCH_S,
    log: Path | None = None,
    snapshot: Path | None = None,
    on_change: Callable[[Change], None] = lambda _change: None,
) -> Guard:
    """Protect the kernel that ``proof`` located, and what ``more`` asks for.

    See :func:`~undercroft.securekernel.traps.regions.requested_regions` for ``more``.

    The proof has to look at the text after this, not only before: from now on every change is
    seen, so what is equal at any later moment has been explained all the time since.

    Raises EnvironmentFault if the kernel is not located, if the hypervisor cannot be attached to,
    or if it is QEMU's emulator with several threads: see :func:`check_emulator`, which
    ``despite_tcg`` leaves out.
    """
    if not despite_tcg:
        check_emulator(pid)
    kernel, replay = proof.kernel, proof.replay
    if kernel is None or replay is None:
        missing = StillBootingError if is_unknown(proof) else EnvironmentFault
        raise missing(
            "there is no kernel to protect yet",
            got=proof.located.summary,
            remedy="wait until the guest has booted the kernel that it is meant to run",
        )
    if not is_running(proof.memory, proof.image, kernel):
        raise StillBootingError(
            "the kernel still boots: what is constant later is being written now",
            remedy="wait until the guest has booted",
        )
    memory, image = proof.memory, proof.image
    requested = (requested_regions(memory, image, kernel, wanted) for wanted in more)
    regions = (*kernel_regions(memory, image, kernel), *itertools.chain(*requested))
    live = Canvas(0, bytearray(proof.image.text_size))
    explainer = Explainer(replay, proof.memory, kernel, live)
    judge = TextJudge(kernel.base, kernel_sites(replay), explainer)
    guard = Guard(
        pid,
        proof.memory,
        ranges,
        regions,
        mode=mode,
        text=judge,
        machine=machine,
        lend=lend,
        epoch_s=epoch_s,
        log=log,
        snapshot=snapshot,
        on_change=on_change,
    )
    try:
        guard.set_uncovered(find_uncovered(pid, ranges))
    except BaseException:
        guard.close()
        raise
    return guard


def is_running(memory: PhysicalMemory, image: KernelImage, kernel: LocatedKernel) -> bool:
    """Tell whether the kernel says that it has booted: then its constants are read-only.

    ``system_state`` is set to SYSTEM_RUNNING after mark_readonly() (init/main.c, kernel_init).
    A kernel without the variable is taken to have booted.
    """
    at = image.find("system_state")
    if at is None:
        return True
    paddr = AddressSpace(memory, kernel.cr3, kernel.la57).translate(kernel.base + at)
    return int.from_bytes(memory.read(paddr, 4), "little") >= SYSTEM_RUNNING


def check_emulator(pid: int) -> None:
    """Raise EnvironmentFault if the process is QEMU's TCG with more than one vCPU thread.

    TCG invalidates translated code before the store that changes it (accel/tcg/cputlb.c:
    notdirty_write, then store_helper).  Another vCPU's thread that translates the same code in
    between keeps the old instruction for ever.  That race is in QEMU, and a few ns wide; a trapped
    store widens it to as long as our answer takes, and a guest was seen to run into an INT3
    that is no longer there without end.  With one thread for all vCPUs, and with KVM, there is
    no such race.
    """
    names = []
    for thread in Path(f"/proc/{pid}/task").glob("*"):
        with contextlib.suppress(OSError):
            names.append((thread / "comm").read_text().strip())
    if sum(name.startswith("CPU ") and name.endswith("/TCG") for name in names) > 1:
        raise EnvironmentFault(
            "QEMU emulates the vCPUs in several threads, where trapping writes to code can hang it",
            where=f"process {pid}",
            remedy="start the guest with -accel tcg,thread=single, or with KVM",
        )


def find_uncovered(pid: int, ranges: Sequence[HostRange]) -> list[Uncovered]:
    """Return every way around the traps that /proc shows, each once."""
    found = {
        (channel.kind, channel.pid, channel.detail): Uncovered(
            channel.kind, channel.pid, channel.detail
        )
        for channel in uncovered_channels(pid, *(entry.host for entry in ranges))
    }
    return list(found.values())
