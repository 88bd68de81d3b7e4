"""How often what is looked at, and what is said when the kernel cannot be found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from undercroft.base import Finding, Outcome
from undercroft.formats.kernel import KernelImage
from undercroft.securekernel import inspect
from undercroft.securekernel.inspect import SecureKernel
from undercroft.testing.fakeguest import FakeGuest
from undercroft.testing.fakekernel import FakeImage

TEXT = Finding("kernel.text", Outcome.PASS, "text")
SLOW = Finding("kernel.slow", Outcome.PASS, "slow")


class FakeProof:
    """Stands in for the proof of the kernel's text; counts the sweeps."""

    def __init__(self, located: bool) -> None:
        self.kernel = SimpleNamespace(slide=0, cr3=0x1000, la57=False) if located else None
        self.sweeps = 0
        self.modules = None

    def sweep(self) -> list[Finding]:
        self.sweeps += 1
        return [TEXT] if self.kernel else [Finding("kernel.located", Outcome.UNKNOWN, "not yet")]


class Scene:
    """A secure kernel over a fake guest, with one slow look and a clock of the test's."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, located: bool) -> None:
        self.now = 100.0
        self.slow_looks = 0
        self.attached = 0
        self.proof = FakeProof(located)
        monkeypatch.setattr(inspect, "LOOKS", (self._slow,))
        monkeypatch.setattr(inspect, "State", lambda *_: None)
        monkeypatch.setattr("undercroft.securekernel.inspect.time.monotonic", lambda: self.now)
        monkeypatch.setattr(SecureKernel, "_attach", lambda _: self._attach())
        image = SimpleNamespace(release="6.1.0", build_id="ab" * 20)
        self.kernel = SecureKernel(FakeGuest(pages=4), cast(KernelImage, image))

    def _attach(self) -> Any:
        self.attached += 1
        return self.proof

    def _slow(self, *_: object) -> tuple[Finding, ...]:
        self.slow_looks += 1
        return (SLOW,)


def test_facts_are_everything_as_of_now(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, located=True)
    assert scene.kernel.facts() == [TEXT, SLOW]
    assert scene.kernel.facts() == [TEXT, SLOW]
    assert (scene.proof.sweeps, scene.slow_looks) == (2, 2)


def test_watching_looks_at_the_code_each_time_and_at_the_rest_now_and_then(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, located=True)
    for _ in range(3):
        assert scene.kernel.watch() == [TEXT, SLOW]
    assert (scene.proof.sweeps, scene.slow_looks) == (3, 1)
    scene.now += inspect.SLOW_S + 0.1
    assert scene.kernel.watch() == [TEXT, SLOW]
    assert scene.slow_looks == 2


def test_a_kernel_that_is_not_there_yet_is_looked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scene = Scene(monkeypatch, located=False)
    (finding,) = scene.kernel.watch()
    assert finding.outcome is Outcome.UNKNOWN
    scene.kernel.watch()
    assert scene.attached == 3
    assert scene.slow_looks == 0
    assert scene.kernel.event_log() is None
    assert scene.kernel.ima_list() is None


def test_the_record_says_when_and_through_what(monkeypatch: pytest.MonkeyPatch) -> None:
    record = Scene(monkeypatch, located=True).kernel.record()
    assert record.t0 <= record.t1
    assert record.channels == ("poll", "memory:fake", "registers:fake")
    assert record.kernel_build_id == bytes.fromhex("ab" * 20)
    assert [fact.id for fact in record.facts] == ["kernel.text", "kernel.slow"]


def test_a_log_that_cannot_be_walked_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    scene = Scene(monkeypatch, located=True)
    scene.kernel.image = cast(KernelImage, FakeImage({}))
    assert scene.kernel.event_log() is None
