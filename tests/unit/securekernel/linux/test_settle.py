"""Patches in progress come to rest; what does not, and what is none, is a mismatch.

The tiny kernel switches a static key: the key first, its site when its turn comes.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest

from undercroft.base import Finding, MemoryFault, Outcome
from undercroft.formats.kernel import load_kernel
from undercroft.reference.kernel.guest import GuestValues
from undercroft.securekernel.linux import settle
from undercroft.securekernel.linux.text import SYSTEM_RUNNING, KernelTextProof
from undercroft.testing import tinylinux as t
from undercroft.testing.tinykernel import DATA, rel32
from undercroft.testing.tinylinux import TinyLinux

HEAP = DATA + 0x2000
LOCK, JIFFIES, SYSTEM_STATE = HEAP, HEAP + 0x20, HEAP + 0x28
BP_DESC, TP_VEC_NR, TP_VEC, BATCH = HEAP + 0x30, HEAP + 0x48, HEAP + 0x50, HEAP + 0x200
JUMP = rel32("e9", t.LABEL, t.LABEL + 0x40)


class World:
    """A booted tiny Linux under proof, whose clock goes only while the proof sleeps.

    ``happens`` is called with the seconds that have passed, before each look.
    """

    def __init__(self) -> None:
        self.linux = TinyLinux()
        tiny = self.linux.tiny
        tiny.structs |= {
            "mutex": (32, {"owner": 0}),
            "bp_patching_desc": (16, {"vec": 0, "nr_entries": 8, "refs": 12}),
            "text_poke_loc": (16, {"rel_addr": 0}),
        }
        for name, at in (
            ("jump_label_mutex", LOCK),
            ("jiffies_64", JIFFIES),
            ("system_state", SYSTEM_STATE),
            ("bp_desc", BP_DESC),
            ("tp_vec_nr", TP_VEC_NR),
            ("tp_vec", TP_VEC),
        ):
            tiny.symbols[name] = (at, "D")
        self.linux.image = load_kernel(tiny.vmlinuz())
        self.linux.variables[SYSTEM_STATE] = (SYSTEM_RUNNING, 4)
        self.linux.boot()
        self.time = 0.0
        self.runs = True
        self.happens: Callable[[float], None] = lambda _: None

    def attach(self) -> KernelTextProof:
        guest = self.linux.guest
        proof = KernelTextProof.attach(
            guest.memory, guest.states, self.linux.image, paused=guest.paused
        )
        proof.settler.sleep, proof.settler.now = self.sleep, lambda: self.time
        return proof

    def sleep(self, seconds: float) -> None:
        self.time += seconds
        if self.runs:
            self.put(JIFFIES, int(self.time * 250) + 1, 8)
            self.happens(self.time)

    def put(self, at: int, value: int, size: int = 4) -> None:
        self.linux.poke(at, value.to_bytes(size, "little"))

    def switch_off(self) -> None:
        """Begin to switch the key off: it is 0, somebody holds jump_label_mutex."""
        self.put(t.KEY, 0)
        self.put(LOCK, 0xFFFF888000001000, 8)

    def announce(self, *sites: int) -> None:
        """Say that a batch of patches is under way, on the same vector for ever."""
        self.put(BP_DESC, self.linux.at(BATCH), 8)
        self.put(BP_DESC + 8, len(sites))
        self.put(BP_DESC + 12, 1)
        for index, site in enumerate(sites):
            self.put(BATCH + 16 * index, site)


@pytest.fixture(autouse=True)
def _less_patience(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settle, "MOVING_S", 6.0)
    monkeypatch.setattr(settle, "MOVING_MAX_S", 25.0)


@pytest.fixture
def world() -> World:
    return World()


def text_of(proof: KernelTextProof) -> Finding:
    return next(finding for finding in proof.sweep() if finding.id == "kernel.text")


def test_a_patch_whose_turn_comes_late(world: World) -> None:
    """The key is off for five seconds before its site follows."""
    world.switch_off()
    proof = world.attach()

    def follow(passed: float) -> None:
        if passed > 5:
            world.linux.poke(t.LABEL, t.NOP5)
            world.put(LOCK, 0, 8)

    world.happens = follow
    assert text_of(proof).outcome is Outcome.PASS
    assert world.time > 5
    assert proof.text_equal()
    assert world.linux.guest.pauses <= 2 + 5 / settle.PAUSE_EVERY_S


def test_the_same_without_the_lock(world: World) -> None:
    world.put(t.KEY, 0)
    finding = text_of(world.attach())
    assert (finding.outcome, finding.details["unexplained"]) == (Outcome.FAIL, 3)
    assert world.time < 1
    assert world.linux.guest.pauses == 2


def test_a_lock_that_is_never_given_back(world: World) -> None:
    world.switch_off()
    proof = world.attach()
    finding = text_of(proof)
    assert finding.outcome is Outcome.FAIL
    assert "for too long" in str(finding.details["mismatches"])
    assert settle.MOVING_S < world.time < settle.MOVING_S + 1


def test_patches_that_go_on_are_waited_for(world: World) -> None:
    """text_mutex is held by a tracer with many batches: the site is moving all the time."""
    world.switch_off()
    proof = world.attach()

    def batches(passed: float) -> None:
        world.announce(0x1800 + int(passed))
        if passed > 3 * settle.MOVING_S:
            world.linux.poke(t.LABEL, t.NOP5)

    world.happens = batches
    assert text_of(proof).outcome is Outcome.PASS
    assert world.time > 3 * settle.MOVING_S


def test_but_not_for_ever(world: World) -> None:
    world.switch_off()
    proof = world.attach()
    world.happens = lambda passed: world.announce(0x1800 + int(passed))
    assert text_of(proof).outcome is Outcome.FAIL
    assert settle.MOVING_MAX_S < world.time < settle.MOVING_MAX_S + 1


def test_a_guest_that_stands_still_in_the_middle_of_a_patch(world: World) -> None:
    """A dump, or somebody else's pause: nothing will come to rest, and nothing is known."""
    world.switch_off()
    proof = world.attach()
    world.runs = False
    finding = text_of(proof)
    assert finding.outcome is Outcome.UNKNOWN
    assert "stands still" in finding.summary
    assert world.time < settle.STILL_S + 1


def test_a_change_that_hides_behind_a_patch(world: World) -> None:
    """The lock explains the site of the key, and not a byte elsewhere."""
    world.switch_off()
    proof = world.attach()
    world.linux.poke(t.VICTIM, b"\xcc")
    finding = text_of(proof)
    assert finding.outcome is Outcome.FAIL
    assert "victim" in finding.summary
    assert world.time < 1


def test_bytes_beside_a_patch_are_not_excused_once_it_is_at_rest(world: World) -> None:
    world.switch_off()
    proof = world.attach()
    world.linux.poke(t.LABEL + 5, b"\x90")

    def follow(passed: float) -> None:
        if passed > 1:
            world.linux.poke(t.LABEL, t.NOP5)
            world.put(LOCK, 0, 8)

    world.happens = follow
    assert text_of(proof).outcome is Outcome.FAIL


def test_a_breakpoint_that_stays_at_an_announced_site(world: World) -> None:
    """The guest's word makes an INT3 lawful for a while; then it is one that nobody explains."""
    proof = world.attach()
    world.linux.poke(t.LABEL, b"\xcc")
    world.announce(t.LABEL)
    assert text_of(proof).outcome is Outcome.FAIL
    assert world.time > settle.MOVING_S


def test_a_patch_in_progress_at_the_attach_is_looked_at_again(world: World) -> None:
    world.linux.poke(t.LABEL, b"\xcc" + JUMP[1:])
    world.announce(t.LABEL)
    proof = world.attach()
    assert not proof.text_equal()
    world.happens = lambda passed: world.linux.poke(t.LABEL, JUMP) if passed > 0.5 else None
    assert text_of(proof).outcome is Outcome.PASS
    assert proof.text_equal()


def test_more_places_than_are_looked_at_in_one_pause(world: World) -> None:
    proof = world.attach()
    for at in range(40):
        world.linux.poke(0x1800 + 0x20 * at, b"\x55")
    finding = text_of(proof)
    assert finding.outcome is Outcome.FAIL
    assert finding.details["places"] == settle.PLACES


def test_variables_that_cannot_be_read_for_a_moment(world: World) -> None:
    """A list that is taken apart as we walk it: the next look finds it whole."""
    proof = world.attach()
    world.put(t.KEY, 0)
    world.linux.poke(t.LABEL, t.NOP5)
    honest = proof.settler.values
    faults = [True] * settle.RUNNING_LOOKS

    def values() -> GuestValues:
        if faults and faults.pop():
            raise MemoryFault(0x1234, kind="virtual")
        return honest()

    proof.settler.values = values
    assert text_of(proof).outcome is Outcome.PASS
    assert world.linux.guest.pauses == 1


def test_variables_that_cannot_be_read_at_all(world: World) -> None:
    proof = world.attach()
    world.linux.poke(t.VICTIM, b"\xcc")

    def values() -> GuestValues:
        raise MemoryFault(0x1234, kind="virtual")

    proof.settler.values = values
    assert text_of(proof).outcome is Outcome.FAIL


@pytest.mark.parametrize("state", range(SYSTEM_RUNNING))
def test_a_kernel_that_still_boots(world: World, state: int) -> None:
    """It has not finished patching itself: that is no mismatch, and no proof either."""
    world.put(SYSTEM_STATE, state)
    world.linux.poke(t.ALTERNATIVE, b"\x90" * 5)
    (finding,) = world.attach().sweep()
    assert (finding.id, finding.outcome) == ("kernel.located", Outcome.UNKNOWN)
    assert finding.details["cause"] == "booting"
    assert "still boots" in finding.summary
    world.put(SYSTEM_STATE, SYSTEM_RUNNING)
    world.linux.poke(t.ALTERNATIVE, bytes.fromhex("0f01ca6690"))
    assert text_of(world.attach()).outcome is Outcome.PASS
