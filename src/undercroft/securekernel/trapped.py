"""The secure kernel with write traps: the same facts, and one about every moment in between.

``kernel.traps`` carries the digest of the chain of epochs, so that the quote which binds the
record binds the chain; the chain itself is handed over beside it.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from undercroft.base import EnvironmentFault, Finding, JsonValue, Outcome, UndercroftError
from undercroft.formats.evidence.interval import Change, Epoch, epoch_digest
from undercroft.formats.evidence.record import SecureKernelRecord
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.linux import cpu_state
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.modules_text import ModuleLibrary
from undercroft.securekernel.linux.usercode import FileLibrary
from undercroft.securekernel.traps.attach import find_uncovered, guard_kernel
from undercroft.securekernel.traps.guard import EPOCH_S, Guard, GuardStatus, Mode
from undercroft.securekernel.traps.modules import ModuleWatch
from undercroft.securekernel.traps.processes import ProcessWatch
from undercroft.securekernel.traps.sampling import RegisterSampler
from undercroft.securekernel.traps.writetrap import HostRange

FINDING = "kernel.traps"
CHANNEL = "write-trap"
_PROCESS = "pid:"
LISTED = 8
"""Violations that the finding lists; the chain has all of them."""


class TrappedKernel(SecureKernel):
    """A secure kernel that keeps a guard over its guest.  Close it, or use it as a context.

    With ``second``, another attachment to the same guest, registers are looked at too, at times
    that nobody can foresee.  ``more`` names what else may not be written to: places in the kernel,
    or the code of processes (``pid:N``, the guest's number).

    Raises EnvironmentFault if the guest's kernel is not located or cannot be guarded.
    """

    def __init__(
        self,
        guest: QemuGuest,
        image: KernelImage,
        mode: Mode,
        *,
        library: ModuleLibrary | None = None,
        files: FileLibrary | None = None,
        log: Path | None = None,
        snapshot: Path | None = None,
        second: QemuGuest | None = None,
        more: Sequence[str] = (),
        epoch_s: float = EPOCH_S,
    ) -> None:
        super().__init__(guest, image, library, files)
        self._qemu = guest
        self._mode = mode
        self._log = log
        self._snapshot = snapshot
        self._more = tuple(each for each in more if not each.startswith(_PROCESS))
        self._pids = tuple(_pid(each) for each in more if each.startswith(_PROCESS))
        self._epoch_s = epoch_s
        self._second = second
        self._events = guest.events()
        self.sessions: list[tuple[bytes, ...]] = []
        """The chains of earlier sessions, each of which ended because memory was replaced."""
        try:
            self._arm()
        except BaseException:
            self._end_events()
            raise

    def _arm(self) -> None:
        self._ranges: tuple[HostRange, ...] = self._qemu.host_ranges()
        self._violations: list[Change] = []
        self.guard: Guard = guard_kernel(
            self.proof,
            self._qemu.pid,
            self._ranges,
            mode=self._mode,
            more=self._more,
            epoch_s=self._epoch_s,
            machine=self._events,
            lend=self._qemu.lent,
            log=self._log,
            snapshot=self._snapshot,
            on_change=self._note,
        )
        self.modules = ModuleWatch(self.guard, self.proof)
        self._processes = ProcessWatch(self.guard, self.proof, self._pids) if self._pids else None
        self._sampler: RegisterSampler | None = None
        if self._second is not None:
            self._sampler = RegisterSampler(self.guard, self._registers)

    def renew(self) -> bool:
        """After a reset or a restore: begin a new session, as soon as the guest has booted again.

        Everything is located, armed and proven anew.  Returns whether there is a session now; what
        was found in the last one is in its chain.
        """
        if not self.guard.status().replaced:
            return not self.guard.status().ended
        if self._events is not None:
            self._events.replaced = ""
        self.proof = self._attach()
        if self.proof.kernel is None or self.proof.located.outcome is not Outcome.PASS:
            return False
        ended = self.guard
        self._disarm()
        try:
            self._arm()
        except UndercroftError:  # it still boots: part of it is not there yet
            self.guard = ended
            return False
        self.sessions.append(ended.chain())
        return True

    def _registers(self) -> tuple[Finding, ...]:
        """Look at every vCPU's registers through the monitor session of our own thread."""
        live = self._live()
        if live is None or self._second is None:
            return ()
        return cpu_state.collect(live, self._second.vcpus, Observer(self._second.paused))

    def _note(self, change: Change) -> None:
        if not change.lawful and len(self._violations) < LISTED:
            self._violations.append(change)

    def facts(self) -> list[Finding]:
        """Return every fact; of a guest that was frozen, only what the traps saw."""
        self.renew()
        return [self.now()] if self.guard.status().frozen else super().facts()

    def watch(self) -> list[Finding]:
        """Return every fact, some a little old; of a guest that was frozen, only the traps'."""
        self.renew()
        return [self.now()] if self.guard.status().frozen else super().watch()

    def sweep(self) -> list[Finding]:
        """Return the facts about the kernel's code, and what the traps saw so far."""
        return [*super().sweep(), self.now()]

    def record(self) -> SecureKernelRecord:
        """Return one report.  It ends an epoch, and its interval begins where the chain does."""
        record = super().record()
        traps = self.traps()
        return replace(
            record,
            t0=min(record.t0, self.guard.status().since),
            t1=time.time_ns(),
            channels=(*record.channels, CHANNEL),
            facts=(*(fact for fact in record.facts if fact.id != FINDING), traps),
        )

    def chain_of(self, record: SecureKernelRecord) -> tuple[bytes, ...]:
        """Return the chain of encoded epochs whose head a record of ours names; empty if none."""
        head = next((fact.details.get("head") for fact in record.facts if fact.id == FINDING), None)
        chain = self.guard.chain()
        for length in range(len(chain), 0, -1):
            if epoch_digest(chain[length - 1]).hex() == head:
                return chain[:length]
        return ()

    def now(self) -> Finding:
        """Say what the traps saw since they were armed; the epoch goes on."""
        return self._finding(None, b"")

    def traps(self) -> Finding:
        """Look for ways around the traps, end the epoch, and say what the traps saw."""
        status = self.guard.status()
        if status.ended:
            return self.now()
        if not status.frozen:
            self.guard.set_uncovered(find_uncovered(self._qemu.pid, self._ranges))
        epoch = self.guard.close_epoch()
        return self._finding(epoch, self.guard.journal.head)

    def _finding(self, epoch: Epoch | None, head: bytes) -> Finding:
        left_out = self.modules.not_covered()
        return traps_finding(self.guard.status(), epoch, head, self._violations, left_out)

    def close(self) -> None:
        """Let go of the guest."""
        self._disarm()
        self._end_events()

    def _disarm(self) -> None:
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
        if self._processes is not None:
            self._processes.close()
        self.modules.close()
        self.guard.close()

    def _end_events(self) -> None:
        if self._events is not None:
            self._events.close()

    def __enter__(self) -> TrappedKernel:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


def _pid(wanted: str) -> int:
    number = wanted.removeprefix(_PROCESS)
    if not number.isdecimal():
        raise EnvironmentFault("not a process", expected="pid:NUMBER", got=wanted)
    return int(number)


def traps_finding(
    status: GuardStatus,
    epoch: Epoch | None,
    head: bytes,
    violations: list[Change],
    left_out: Sequence[str] = (),
) -> Finding:
    """Return the fact about a guard: FAIL with a violation, UNKNOWN without full cover.

    ``left_out`` are modules that are not covered: whether they may be there is for the fact about
    their code to say.
    """
    details: dict[str, JsonValue] = {
        "mode": status.mode.value,
        "session": status.session.hex(),
        "since": status.since,
        "writes": status.writes,
        "lawful": status.lawful,
        "violations": status.violations,
        "unsettled": status.pending,
        "frozen": status.frozen,
        "memory_was_replaced": status.replaced,
        "modules_not_covered": list(left_out),
        "uncovered": [f"{each.kind} ({each.pid}): {each.detail}" for each in status.uncovered],
    }
    doubts = [text for text in (status.ended, status.fault) if text]
    if epoch is not None:
        details |= {
            "head": head.hex(),
            "epochs": epoch.sequence,
            "t1": epoch.t1,
            "ranges": [
                {
                    "name": covered.name,
                    "bytes": sum(size for _, _, size in covered.extents),
                    "last-modified-epoch": covered.last_modified,
                }
                for covered in epoch.ranges
            ],
            "channels": list(epoch.channels),
        }
    doubts += [f"{each.kind} of process {each.pid}" for each in status.uncovered[:1]]
    if violations:
        details["seen"] = [_as_json(change) for change in violations]
        where = ", ".join(dict.fromkeys(each.symbol or each.range for each in violations[:4]))
        what = "was refused" if not violations[0].landed else "landed"
        summary = f"{status.violations:,} unexplained writes; the first {what}, in {where}"
        return Finding(FINDING, Outcome.FAIL, summary, details)
    seen = f"{status.writes:,} writes to protected memory, all explained"
    if left_out:
        seen += f"; not covered: {', '.join(left_out[:4])}"
    if doubts:
        return Finding(FINDING, Outcome.UNKNOWN, f"{seen}; but: {'; '.join(doubts)}", details)
    return Finding(FINDING, Outcome.PASS, seen, details)


def _as_json(change: Change) -> dict[str, JsonValue]:
    return {
        "time": change.time,
        "range": change.range,
        "address": f"{change.vaddr or change.paddr:#x}",
        "symbol": change.symbol,
        "before": change.before.hex(),
        "after": change.after.hex(),
        "thread": change.thread,
        "landed": change.landed,
        "reason": change.reason,
    }
