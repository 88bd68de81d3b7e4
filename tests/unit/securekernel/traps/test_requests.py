"""What somebody asks to have protected as well, and when there is no kernel to protect yet."""

from __future__ import annotations

import os

import pytest

from undercroft.base import EnvironmentFault
from undercroft.formats.kernel import load_kernel
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.securekernel.traps.attach import StillBootingError, guard_kernel, is_running
from undercroft.securekernel.traps.regions import Region, requested_regions
from undercroft.testing import tinykernel
from undercroft.testing import tinylinux as t
from undercroft.testing.tinylinux import TinyLinux

STATE = tinykernel.DATA + 0x300


@pytest.fixture
def linux() -> TinyLinux:
    linux = TinyLinux()
    linux.tiny.variable("system_state", STATE, 3, size=4)
    linux.image = load_kernel(linux.tiny.vmlinuz())
    return linux.boot()


def prove(linux: TinyLinux) -> KernelTextProof:
    return KernelTextProof.attach(linux.guest.memory, linux.guest.states, linux.image)


def request(linux: TinyLinux, wanted: str) -> tuple[Region, Region]:
    proof = prove(linux)
    assert proof.kernel is not None
    return requested_regions(linux.guest.memory, linux.image, proof.kernel, wanted)


def test_a_symbol_goes_up_to_the_next_one(linux: TinyLinux) -> None:
    asked, entries = request(linux, "key")
    assert asked.size == t.KEY_OFF - t.KEY
    assert asked.extents[0].vaddr == linux.at(t.KEY)
    assert asked.extents[0].paddr == linux.frame + t.KEY
    assert entries.entries
    leaf = linux.guest.entry(linux.at(t.KEY), 12)
    assert leaf in [extent.paddr for extent in entries.extents]


def test_a_size_may_be_given_and_an_address(linux: TinyLinux) -> None:
    assert request(linux, "key+3")[0].size == 3
    asked, _ = request(linux, f"{linux.at(tinykernel.DATA):#x}+0x1000")
    assert asked.size == 0x1000
    assert asked.name.startswith("requested.0x")


@pytest.mark.parametrize(
    "wanted",
    [
        "",
        "no_such_symbol",
        "key+",
        "0xffffffff12345678",
        "key+999999999",
        "0x1000+8",
        "victim",
        "-",
    ],
)
def test_what_is_no_place_is_refused(linux: TinyLinux, wanted: str) -> None:
    with pytest.raises(EnvironmentFault):
        request(linux, wanted)


def test_a_kernel_that_still_boots_is_not_guarded(linux: TinyLinux) -> None:
    proof = prove(linux)
    assert proof.kernel is not None
    assert is_running(linux.guest.memory, linux.image, proof.kernel)
    linux.poke(STATE, bytes((1, 0, 0, 0)))
    assert not is_running(linux.guest.memory, linux.image, proof.kernel)
    with pytest.raises(StillBootingError):
        guard_kernel(proof, os.getpid(), [])


def test_a_guest_without_a_kernel_may_get_one(linux: TinyLinux) -> None:
    linux.guest.states = tuple(linux.guest.vcpu(0, cr0=0x10) for _ in range(1))
    with pytest.raises(StillBootingError):
        guard_kernel(prove(linux), os.getpid(), [])
