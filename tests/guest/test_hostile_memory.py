"""Hostile memory: every collector over mutated images of a real guest ends, and says something.

The words that are changed are those that the collector reads.  What must not happen: an error
that escapes, a hang, or a finding that is none of PASS, FAIL and UNKNOWN.
"""

from __future__ import annotations

import os
import random
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import Finding, FormatError, MemoryFault
from undercroft.formats.kernel import KernelImage
from undercroft.guests.run import Guest
from undercroft.securekernel.hypervisor.dump import DumpGuest
from undercroft.securekernel.inspect import SecureKernel, State
from undercroft.securekernel.linux import (
    accounts,
    bpf,
    closure,
    cpu_state,
    deferred,
    hooks,
    inodes,
    modules,
    modulespace,
    mounts,
    ops,
    pointers,
    realmode,
    tasks,
    user,
    vdso,
)
from undercroft.securekernel.linux.facts import Observer
from undercroft.securekernel.linux.ima import read_ima_list
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.securekernel.linux.locate import locate
from undercroft.securekernel.linux.tcglog import read_event_log
from undercroft.securekernel.linux.usercode import FileLibrary
from undercroft.securekernel.memory import PhysicalMemory
from undercroft.securekernel.vcpu import VcpuState
from undercroft.testing.hostile import MutatedMemory, Mutator, RecordingMemory

pytestmark = pytest.mark.guest

IMAGES, ALL_IMAGES = 400, 10_000
LONGEST_S = 20.0
"""No look at any image may take longer; an honest one takes 0.01 s."""
SEED = int(os.environ.get("UNDERCROFT_SEED", "20260722"))


@dataclass(frozen=True)
class Snapshot:
    """A guest at one moment: its memory, its registers, and where its kernel is."""

    memory: PhysicalMemory
    vcpus: tuple[VcpuState, ...]
    image: KernelImage
    slide: int
    cr3: int
    la57: bool
    files: FileLibrary

    def kernel(self, memory: PhysicalMemory) -> LiveKernel:
        return LiveKernel(memory, self.image, slide=self.slide, cr3=self.cr3, la57=self.la57)


Collector = Callable[[Snapshot, PhysicalMemory], Sequence[Finding]]
OBSERVER = Observer(nullcontext, lambda _: None, (0,))


def raw(reader: Callable[[LiveKernel], bytes]) -> Collector:
    """A reader of bytes may refuse, with its own errors only."""

    def collect(snapshot: Snapshot, memory: PhysicalMemory) -> Sequence[Finding]:
        with suppress(StructureError, MemoryFault, FormatError):
            reader(snapshot.kernel(memory))
        return ()

    return collect


def fact(look: Callable[[LiveKernel, Snapshot], Sequence[Finding]]) -> Collector:
    return lambda snapshot, memory: look(snapshot.kernel(memory), snapshot)


def state(look: Callable[[LiveKernel, State], Finding]) -> Collector:
    return lambda snapshot, memory: [look(snapshot.kernel(memory), State(snapshot.image))]


COLLECTORS: dict[str, Collector] = {
    "locate": lambda snapshot, memory: [locate(memory, snapshot.vcpus, snapshot.image).finding],
    "ima": raw(read_ima_list),
    "event log": raw(read_event_log),
    "cpu": fact(lambda kernel, shot: cpu_state.collect(kernel, lambda: shot.vcpus, OBSERVER)),
    "closure": fact(lambda kernel, shot: closure.collect(kernel, lambda: shot.vcpus, OBSERVER)),
    "pointers": state(lambda kernel, kept: pointers.collect(kernel, kept.pointers, OBSERVER)),
    "hooks": fact(lambda kernel, _: hooks.collect(kernel, OBSERVER)),
    "deferred": fact(lambda kernel, _: hooks.collect(kernel, OBSERVER, deferred.KINDS)),
    "inodes": fact(lambda kernel, _: [inodes.collect(kernel, OBSERVER)]),
    "ops": fact(lambda kernel, _: ops.collect(kernel, OBSERVER)),
    "security": state(lambda kernel, kept: kept.security.hooks(kernel, OBSERVER)),
    "creds": state(lambda kernel, kept: kept.credentials.collect(kernel, OBSERVER)),
    "accounts": fact(lambda kernel, _: [accounts.collect(kernel, OBSERVER)]),
    "bpf": fact(lambda kernel, _: bpf.collect(kernel, OBSERVER)),
    "vdso": state(lambda kernel, kept: vdso.collect(kernel, kept.vdso, OBSERVER, {})),
    "realmode": state(lambda kernel, kept: realmode.collect(kernel, kept.image, OBSERVER)),
    "modules": fact(lambda kernel, _: [modules.crossview(kernel, OBSERVER)]),
    "modules' memory": fact(lambda kernel, _: [modulespace.collect(kernel, OBSERVER)]),
    "tasks": fact(lambda kernel, _: [tasks.crossview(kernel, OBSERVER)]),
    "mounts": fact(lambda kernel, _: [mounts.crossview(kernel, OBSERVER)]),
    "user": fact(lambda kernel, shot: user.collect(kernel, OBSERVER, shot.files)),
}


@pytest.fixture(scope="module")
def snapshot(
    running_guest: Guest, guest_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> Snapshot:
    path = tmp_path_factory.mktemp("snapshot") / "memory"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        target = wiring.open_target(f"qemu:{running_guest.info.name}")
    kernel = SecureKernel(target.guest, target.image).proof.kernel
    assert kernel is not None
    with target.guest.paused():
        vcpus = target.guest.vcpus()
        path.write_bytes(running_guest.info.ram.read_bytes())
    assert target.files is not None
    return Snapshot(
        DumpGuest(path).memory,
        vcpus,
        target.image,
        kernel.slide,
        kernel.cr3,
        kernel.la57,
        target.files,
    )


def recorded(snapshot: Snapshot, collector: Collector) -> list[tuple[int, int]]:
    memory = RecordingMemory(snapshot.memory)
    collector(snapshot, memory)
    return list(memory.accesses)


@pytest.mark.parametrize("name", COLLECTORS)
def test_an_untouched_snapshot_is_collected(name: str, snapshot: Snapshot) -> None:
    for finding in COLLECTORS[name](snapshot, MutatedMemory(snapshot.memory)):
        assert finding.outcome.value == "pass", finding


def run(snapshot: Snapshot, images: int) -> Counter[str]:
    """Collect over ``images`` mutated images, and count outcomes."""
    outcomes: Counter[str] = Counter()
    accesses = {name: recorded(snapshot, one) for name, one in COLLECTORS.items()}
    chosen = random.Random(SEED)
    for number in range(images):
        name = chosen.choice(list(COLLECTORS))
        memory = Mutator(snapshot.memory, accesses[name], SEED + number).mutate()
        start = time.monotonic()
        for finding in COLLECTORS[name](snapshot, memory):
            outcomes[f"{name}: {finding.outcome.value}"] += 1
        took = time.monotonic() - start
        assert took < LONGEST_S, f"{name}, image {number}: {took:.1f} s"
    return outcomes


def test_mutated_images_end_in_findings(snapshot: Snapshot) -> None:
    outcomes = run(snapshot, int(os.environ.get("UNDERCROFT_IMAGES", IMAGES)))
    assert any(key.endswith("unknown") for key in outcomes)


@pytest.mark.slow
def test_ten_thousand_mutated_images_end_in_findings(snapshot: Snapshot) -> None:
    outcomes = run(snapshot, ALL_IMAGES)
    assert sum(outcomes.values()) > ALL_IMAGES
