"""The secure kernel's facts about a real guest: what it reads is what the guest has, and churn is
not mistaken for an attack."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import Outcome
from undercroft.guests.run import Guest, RunOptions
from undercroft.securekernel.hypervisor.qemu import attach
from undercroft.securekernel.inspect import SecureKernel

pytestmark = pytest.mark.guest

SECURITY = "/sys/kernel/security"
CHURN_S = 20.0
CHURN = (
    "while :; do sleep 0 | cat >/dev/null; done",
    "while :; do (sleep 0; sleep 0) & wait; done",
    "while :; do echo 1 > /proc/sys/kernel/sched_schedstats; "
    "echo 0 > /proc/sys/kernel/sched_schedstats; done",
)


def secure_kernel(guest: Guest) -> SecureKernel:
    target = wiring.open_target(f"qemu:{guest.info.name}")
    return SecureKernel(target.guest, target.image, target.kernel.library, target.files)


@pytest.fixture(scope="module", autouse=True)
def _home(guest_home: Path) -> Iterator[None]:
    """Look for guests where the tests start them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(wiring, "home", lambda: guest_home)
        yield


def test_the_logs_are_those_that_the_guest_itself_shows(running_guest: Guest) -> None:
    kernel = secure_kernel(running_guest)
    shown = running_guest.read_file(f"{SECURITY}/ima/binary_runtime_measurements")
    assert shown
    measured = kernel.ima_list()
    assert measured is not None
    assert measured.startswith(shown)  # it may have grown meanwhile
    assert kernel.event_log() == running_guest.read_file(
        f"{SECURITY}/tpm0/binary_bios_measurements"
    )


def test_registers_come_with_msrs_and_a_short_pause(running_guest: Guest) -> None:
    guest = attach(str(running_guest.info.qmp))
    vcpus = guest.vcpus()
    assert len(vcpus) == running_guest.info.cpus
    assert all(vcpu.lstar is not None for vcpu in vcpus)
    assert guest.pid == running_guest.info.qemu.pid


def test_an_honest_guest_passes_every_fact(running_guest: Guest) -> None:
    facts = secure_kernel(running_guest).facts()
    assert len(facts) > 25
    assert {fact.id: fact.summary for fact in facts if fact.outcome is not Outcome.PASS} == {}


def test_forks_and_patching_are_not_mistaken_for_an_attack(
    start_guest: Callable[..., Guest],
) -> None:
    guest = start_guest(RunOptions(one_thread=True))
    kernel = secure_kernel(guest)
    for command in CHURN:
        guest.console(f"({command}) >/dev/null 2>&1 &")
    looks = 0
    wrong: Counter[str] = Counter()
    end = time.monotonic() + CHURN_S
    while time.monotonic() < end:
        looks += 1
        wrong += Counter(
            f"{fact.id}: {fact.summary}"
            for fact in kernel.facts()
            if fact.outcome is not Outcome.PASS and fact.id != "kernel.text"  # has tests of its own
        )
    assert looks >= 5
    assert wrong == Counter()


@pytest.mark.parametrize(
    "options",
    [
        RunOptions(cpu="Skylake-Client-noTSX-IBRS", extra_command_line="pti=on"),
        RunOptions(cpu="qemu64", cpus=1, memory_mb=4096),
    ],
    ids=["page-table isolation", "one CPU, RAM above 4 GiB"],
)
def test_other_machines_pass_as_well(
    start_guest: Callable[..., Guest], options: RunOptions
) -> None:
    guest = start_guest(options)
    facts = secure_kernel(guest).facts()
    assert {fact.id: fact.summary for fact in facts if fact.outcome is not Outcome.PASS} == {}
