"""The secure kernel beside one guest: every fact, put together, and the raw logs.

Facts that could not be collected are UNKNOWN, never absent: a guest that keeps us from looking
must not look better than one that lets us.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from undercroft.base import Finding, FormatError, MemoryFault
from undercroft.formats.evidence.record import VERSION, SecureKernelRecord
from undercroft.formats.kernel import KernelImage
from undercroft.reference.kernel.replay import Replay
from undercroft.securekernel.guest import Guest
from undercroft.securekernel.linux import (
    accounts,
    bpf,
    closure,
    cpu_state,
    creds,
    deferred,
    features,
    hooks,
    inodes,
    modules,
    modulespace,
    mounts,
    ops,
    pointers,
    realmode,
    security,
    tasks,
    user,
    vdso,
)
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.ima import read_ima_list
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.securekernel.linux.modules_text import ModuleLibrary
from undercroft.securekernel.linux.tcglog import read_event_log
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.securekernel.linux.usercode import FileLibrary

SLOW_S = 2.0
"""Seconds between two looks at everything, while the kernel's code is watched more often."""


class SecureKernel:
    """Looks at one guest, again and again.

    ``image`` is the kernel that it is meant to run.  ``library`` gives the modules of its
    package; without one no module's code is compared, and no fact speaks of it.  So it is with
    ``files``, what the guest's files are meant to hold, and the code of processes.
    """

    def __init__(
        self,
        guest: Guest,
        image: KernelImage,
        library: ModuleLibrary | None = None,
        files: FileLibrary | None = None,
    ) -> None:
        self.guest = guest
        self.image = image
        self.library = library
        self.files = files
        self.proof = self._attach()
        self._slow: tuple[float, list[Finding]] = (0.0, [])
        self._state: State | None = None

    def _attach(self) -> KernelTextProof:
        guest = self.guest
        return KernelTextProof.attach(
            guest.memory, guest.vcpus(), self.image, paused=guest.paused, library=self.library
        )

    def facts(self) -> list[Finding]:
        """Return every fact, as of now.  Raises GuestGone if the guest ended."""
        findings = self.sweep()
        if (live := self._live()) is not None:
            observer = Observer(self.guest.paused)
            if self._state is None:
                self._state = State(self.image, self.proof, self.files)
            for look in LOOKS:
                findings += look(live, self.guest, observer, self._state)
        self.guest.check_alive()
        self._slow = (time.monotonic(), findings)
        return findings

    def sweep(self) -> list[Finding]:
        """Return the facts about the kernel's code only: milliseconds, and no pause if all is well.

        Raises GuestGone if the guest ended.
        """
        if self.proof.kernel is None:  # it may have been booting: look for it again
            self.proof = self._attach()
        findings = self.proof.sweep()
        self.guest.check_alive()
        return findings

    def watch(self) -> list[Finding]:
        """Return every fact: the kernel's code as of now, the others at most SLOW_S old.

        For looking often.  Raises GuestGone if the guest ended.
        """
        taken, last = self._slow
        if not last or self.proof.kernel is None or time.monotonic() - taken > SLOW_S:
            return self.facts()
        now = self.sweep()
        fresh = {finding.id for finding in now}
        return [*now, *(finding for finding in last if finding.id not in fresh)]

    def record(self) -> SecureKernelRecord:
        """Return one report about the guest: every fact, and the interval that it speaks of."""
        t0 = time.time_ns()
        facts = tuple(self.facts())
        return SecureKernelRecord(
            version=VERSION,
            guest=self.guest.name,
            kernel_release=self.image.release,
            kernel_build_id=bytes.fromhex(self.image.build_id),
            t0=t0,
            t1=time.time_ns(),
            channels=("poll", *self.guest.channels),
            facts=facts,
        )

    def event_log(self) -> bytes | None:
        """Return the TCG event log from the guest's memory, or None if it cannot be read."""
        return self._read(read_event_log)

    def ima_list(self) -> bytes | None:
        """Return the IMA list from the guest's memory, or None if it cannot be read."""
        return self._read(read_ima_list)

    def _read(self, reader: Callable[[LiveKernel], bytes]) -> bytes | None:
        live = self._live()
        try:
            return reader(live) if live is not None else None
        except (StructureError, MemoryFault, FormatError):
            return None

    def _live(self) -> LiveKernel | None:
        kernel = self.proof.kernel
        if kernel is None:
            return None
        return LiveKernel(
            self.guest.memory,
            self.image,
            slide=kernel.slide,
            cr3=kernel.cr3,
            la57=kernel.la57,
            proven=self._proven if self.proof.modules is not None else None,
        )

    def _proven(self, starts: frozenset[int]) -> frozenset[int]:
        """Return which modules' code was compared; one that is new is compared now."""
        proofs = self.proof.modules
        assert proofs is not None  # it was there when the pass began, and stays
        if not starts <= {low for low, _, _ in proofs.ranges()}:
            proofs.check()
        return starts & {low for low, _, _ in proofs.ranges()}


class State:
    """What the looks keep between them: from the package once, from the guest as first seen."""

    def __init__(
        self,
        image: KernelImage,
        proof: KernelTextProof | None = None,
        files: FileLibrary | None = None,
    ) -> None:
        self.image = image
        self.proof = proof
        self.files = files
        self.pointers = pointers.DataPointers(image)
        self.security = security.SecurityState(image)
        self.credentials = creds.Credentials()
        self.vdso = vdso.Vdso(image)


Findings = tuple[Finding, ...]


def _cpu_state(kernel: LiveKernel, guest: Guest, observer: Observer, _: State) -> Findings:
    return cpu_state.collect(kernel, guest.vcpus, observer)


def _features(kernel: LiveKernel, guest: Guest, _: Observer, state: State) -> Findings:
    return (features.collect(kernel, _replay(state), guest.cpuid),)


def _closure(kernel: LiveKernel, guest: Guest, observer: Observer, _: State) -> Findings:
    return closure.collect(kernel, guest.vcpus, observer)


def _targets(kernel: LiveKernel, _: Guest, observer: Observer, state: State) -> Findings:
    return (
        pointers.collect(kernel, state.pointers, observer),
        *hooks.collect(kernel, observer, {**hooks.KINDS, **deferred.KINDS}),
        *ops.collect(kernel, observer),
        inodes.collect(kernel, observer),
        *bpf.collect(kernel, observer),
    )


def _defences(kernel: LiveKernel, _: Guest, observer: Observer, state: State) -> Findings:
    return (
        state.security.hooks(kernel, observer),
        state.security.switches(kernel, observer),
        state.credentials.collect(kernel, observer),
        accounts.collect(kernel, observer),
    )


def _views(kernel: LiveKernel, _: Guest, observer: Observer, __: State) -> Findings:
    return (
        modules.crossview(kernel, observer),
        modulespace.collect(kernel, observer),
        tasks.crossview(kernel, observer),
        mounts.crossview(kernel, observer),
    )


def _start_code(kernel: LiveKernel, _: Guest, observer: Observer, state: State) -> Findings:
    return (realmode.collect(kernel, state.image, observer),)


def _user_code(kernel: LiveKernel, _: Guest, observer: Observer, state: State) -> Findings:
    return (
        *user.collect(kernel, observer, state.files),
        vdso.collect(kernel, state.vdso, observer, _shown_features(state)),
    )


def _shown_features(state: State) -> dict[int, bool]:
    replay = _replay(state)
    return replay.choices.shown_features() if replay is not None else {}


def _replay(state: State) -> Replay | None:
    return state.proof.replay if state.proof is not None else None


LOOKS: tuple[Callable[[LiveKernel, Guest, Observer, State], Findings], ...] = (
    _features,
    _cpu_state,
    _closure,
    _targets,
    _defences,
    _views,
    _start_code,
    _user_code,
)
"""What is looked at besides the kernel's code."""
