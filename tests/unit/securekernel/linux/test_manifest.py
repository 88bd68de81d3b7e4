"""The proof as a document, and the same proof again from memory without registers."""

from __future__ import annotations

import json

import pytest

from undercroft.base import JsonValue, Outcome
from undercroft.securekernel.linux import manifest, text
from undercroft.securekernel.linux.text import KernelTextProof
from undercroft.testing import tinylinux as t
from undercroft.testing.fakeguest import PAGE_SIZE
from undercroft.testing.tinylinux import TinyLinux


@pytest.fixture(params=[(False, False), (True, True)], ids=["6.1", "6.12-la57"])
def linux(request: pytest.FixtureRequest) -> TinyLinux:
    """A kernel whose root table lies where a real kernel's does: inside its own image."""
    wide, la57 = request.param
    made = TinyLinux(wide=wide, la57=la57).boot()
    memory, root = made.guest.memory, t.ROOT & ~(PAGE_SIZE - 1)
    memory.write(made.frame + root, memory.read(made.guest.cr3, PAGE_SIZE))
    return made


@pytest.fixture(autouse=True)
def _no_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text, "SETTLE_WAIT_S", 0.0)


def prove(linux: TinyLinux, *, registers: bool = True) -> tuple[KernelTextProof, manifest.Manifest]:
    guest = linux.guest
    states = guest.states if registers else ()
    proof = KernelTextProof.attach(guest.memory, states, linux.image)
    document = manifest.manifest(proof, proof.sweep())
    assert document is not None
    return proof, document


def member(document: JsonValue, *path: str) -> JsonValue:
    for key in path:
        assert isinstance(document, dict)
        document = document[key]
    return document


def test_a_dump_without_registers_gives_the_same_proof(linux: TinyLinux) -> None:
    _, live = prove(linux)
    proof, again = prove(linux, registers=False)
    assert again == live
    assert manifest.digest(again) == manifest.digest(json.loads(json.dumps(live)))
    assert proof.located.outcome is Outcome.UNKNOWN  # nothing shows that a processor runs it
    assert "no" in proof.located.summary or "nothing" in proof.located.summary
    assert manifest.differences(again, live) == []


def test_what_the_manifest_says(linux: TinyLinux) -> None:
    proof, document = prove(linux)
    assert member(document, "format") == manifest.FORMAT
    assert member(document, "kernel", "slide") == hex(t.SLIDE)
    assert member(document, "text", "bytes") == proof.image.text_size
    assert member(document, "modules") == {"outcome": "unknown", "loaded": []}
    sums = manifest.totals(document)
    assert sums.unexplained == 0
    assert sums.compared > proof.image.text_size
    assert sums.deviations > 3


def test_another_byte_is_another_proof(linux: TinyLinux) -> None:
    _, before = prove(linux)
    linux.poke(t.VICTIM, b"\xcc")
    _, after = prove(linux)
    assert manifest.totals(after).unexplained == 1
    assert manifest.digest(after) != manifest.digest(before)
    lines = manifest.differences(after, before)
    assert "text.unexplained: 0 became 1" in lines
    assert any(line.startswith("text.mismatches: null became") for line in lines)


def test_what_follows_the_guests_state_is_part_of_the_proof(linux: TinyLinux) -> None:
    _, before = prove(linux)
    linux.poke(t.KEY, b"\0\0\0\0")
    linux.poke(t.LABEL, t.NOP5)
    _, after = prove(linux)
    assert manifest.totals(after).unexplained == 0
    assert any(line.startswith("text.sha256:") for line in manifest.differences(after, before))


def test_a_copy_that_no_page_table_leads_to_is_no_kernel(linux: TinyLinux) -> None:
    memory = linux.guest.memory
    image = linux.image
    at = image.sections[".notes"].address - image.link_base
    notes = image.read(at, image.sections[".notes"].size)
    memory.write(linux.frame + at, bytes(len(notes)))
    spare = linux.guest.frame()
    memory.write(spare, notes)
    proof = KernelTextProof.attach(memory, (), image)
    assert proof.kernel is None
    assert proof.located.outcome is Outcome.UNKNOWN
    assert "no kernels of the package's build" in proof.located.summary
    assert manifest.manifest(proof, proof.sweep()) is None


def test_lists_are_compared_item_by_item() -> None:
    assert manifest.differences({"a": [1, 2]}, {"a": [1, 3]}) == ["a[1]: 3 became 2"]
    assert manifest.differences({"a": [1]}, {"a": [1, 3]}) == ["a: [1, 3] became [1]"]
    (line,) = manifest.differences("y" * 200, "x")
    assert line.endswith("...")
