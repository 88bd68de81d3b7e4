"""How a fact settles: what every look saw counts, what one look saw does not."""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from undercroft.base import Finding, FormatError, JsonValue, MemoryFault, Outcome
from undercroft.securekernel.linux.facts import (
    MAX_MORE,
    MAX_REPORTED,
    Anomaly,
    FactSpec,
    Look,
    Observer,
)
from undercroft.securekernel.linux.live import LiveKernel, StructureError
from undercroft.testing.fakekernel import FakeKernel

SPEC = FactSpec("kernel.thing", "all is well", "a thing is wrong", ("nothing is seen",), "vmlinuz")


class Scene:
    """Looks that the test scripts, and a record of pauses and waits."""

    def __init__(self, *looks: Look | Exception) -> None:
        self.looks = list(looks)
        self.log: list[str] = []
        self.observer = Observer(self.paused, self.sleep, (0.0, 0.1, 0.2))

    @contextmanager
    def paused(self) -> Iterator[None]:
        self.log.append("stop")
        yield
        self.log.append("cont")

    def sleep(self, seconds: float) -> None:
        self.log.append(f"wait {seconds}")

    def look(self, _: LiveKernel) -> Look:
        self.log.append("look")
        result = self.looks.pop(0)
        if isinstance(result, Exception):
            raise result
        return result


def wrong(*names: str) -> Look:
    return Look({name: Anomaly({"name": name}) for name in names}, {"seen": len(names)})


def kernel() -> LiveKernel:
    return FakeKernel({}).kernel()


def test_a_clean_look_is_enough_and_costs_no_pause() -> None:
    scene = Scene(Look({}, {"seen": 3}))
    finding = scene.observer.settle(SPEC, kernel(), scene.look)
    assert finding.outcome is Outcome.PASS
    assert finding.summary == "all is well"
    assert finding.details == {"seen": 3, "limits": ["nothing is seen"]}
    assert finding.source == "vmlinuz"
    assert scene.log == ["look"]


def test_what_one_look_saw_does_not_count() -> None:
    scene = Scene(wrong("a"), Look())
    assert scene.observer.settle(SPEC, kernel(), scene.look).outcome is Outcome.PASS
    assert scene.log == ["look", "wait 0.1", "stop", "look", "cont"]


def test_different_anomalies_in_each_look_are_not_fine() -> None:
    """A hider that moves from look to look must not come out as a clean machine."""
    scene = Scene(wrong("a", "b"), wrong("b", "c"), wrong("a", "c"))
    finding = scene.observer.settle(SPEC, kernel(), scene.look)
    assert finding.outcome is Outcome.UNKNOWN
    assert "something else" in finding.summary


def test_what_every_look_saw_counts() -> None:
    scene = Scene(wrong("a", "b"), wrong("b"), wrong("b", "c"))
    finding = scene.observer.settle(SPEC, kernel(), scene.look)
    assert finding.outcome is Outcome.FAIL
    assert finding.summary == "a thing is wrong"
    assert finding.details["anomalies"] == [{"name": "b"}]
    assert finding.details["count"] == 1
    scene = Scene(*[wrong("a")] * (3 + MAX_MORE))
    assert settle_with(scene, [True]).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    "error",
    [StructureError("a cycle", 0x10), MemoryFault(0x20), FormatError("BTF", 0, "no struct")],
)
def test_what_cannot_be_walked_is_unknown(error: Exception) -> None:
    scene = Scene(error, error, error)
    finding = scene.observer.settle(SPEC, kernel(), scene.look)
    assert finding.outcome is Outcome.UNKNOWN
    assert "could not tell" in finding.summary


def test_a_walk_that_fails_once_is_looked_at_again() -> None:
    scene = Scene(MemoryFault(0x20), Look())
    assert scene.observer.settle(SPEC, kernel(), scene.look).outcome is Outcome.PASS


def test_a_walk_that_fails_does_not_hide_into_a_pass() -> None:
    """A failed walk is no look at all: it neither clears nor confirms."""
    scene = Scene(wrong("a"), MemoryFault(0x20), wrong("a"))
    assert scene.observer.settle(SPEC, kernel(), scene.look).outcome is Outcome.FAIL
    scene = Scene(wrong("a"), MemoryFault(0x20), MemoryFault(0x20))
    assert scene.observer.settle(SPEC, kernel(), scene.look).outcome is Outcome.UNKNOWN


def test_an_anomaly_that_is_not_certain_is_unknown() -> None:
    doubt = Look({"a": Anomaly({"why": "unreadable"}, certain=False)})
    scene = Scene(doubt, doubt, doubt)
    assert scene.observer.settle(SPEC, kernel(), scene.look).outcome is Outcome.UNKNOWN


def test_other_errors_are_bugs_and_escape() -> None:
    scene = Scene(ValueError("ours"))
    with pytest.raises(ValueError, match="ours"):
        scene.observer.settle(SPEC, kernel(), scene.look)


def test_a_long_list_is_cut_and_counted() -> None:
    many = wrong(*(str(number) for number in range(MAX_REPORTED + 5)))
    scene = Scene(many, many, many)
    details = scene.observer.settle(SPEC, kernel(), scene.look).details
    assert details["count"] == MAX_REPORTED + 5
    anomalies = details["anomalies"]
    assert isinstance(anomalies, list)
    assert len(anomalies) == MAX_REPORTED


def settle_with(scene: Scene, answers: list[bool], spec: FactSpec = SPEC) -> Finding:
    (finding,) = scene.observer.settle_all(
        (spec,),
        kernel(),
        lambda fresh: {spec.id: scene.look(fresh)},
        more=lambda _: answers.pop(0) if len(answers) > 1 else answers[0],
    )
    return finding


def test_looks_go_on_as_long_as_more_are_asked_for() -> None:
    bad = wrong("a")
    scene = Scene(bad, bad, bad, bad, Look())
    assert settle_with(scene, [True]).outcome is Outcome.PASS
    scene = Scene(bad, bad, bad, bad, bad)
    assert settle_with(scene, [True, True, False]).outcome is Outcome.FAIL


def test_what_may_yet_be_lawful_is_unknown() -> None:
    scene = Scene(*[wrong("a")] * (3 + MAX_MORE))
    finding = settle_with(scene, [True], replace(SPEC, patient=True))
    assert finding.outcome is Outcome.UNKNOWN
    assert "may yet be lawful" in finding.summary
    assert finding.details["count"] == 1
    scene = Scene(*[wrong("a")] * (3 + MAX_MORE))
    assert settle_with(scene, [True]).outcome is Outcome.FAIL


@pytest.mark.parametrize(
    ("details", "why"),
    [
        ({"walk": "a list does not end"}, "a list does not end"),
        ({"file": "/x", "pages": 5, "rule": "nobody knows it"}, "file /x: nobody knows it"),
        ({"id": 1, "type": "tracing", "name": "", "uid": 0}, "id 1, type tracing"),
        ({}, "no reason known"),
    ],
)
def test_what_could_not_be_told_is_said_in_words(details: dict[str, JsonValue], why: str) -> None:
    unsure = Anomaly(details, certain=False)
    for count, end in ((1, ""), (3, ", and 2 more")):
        found: dict[Hashable, Anomaly] = dict.fromkeys(range(count), unsure)
        scene = Scene(*[Look(found)] * 3)
        summary = scene.observer.settle(SPEC, kernel(), scene.look).summary
        assert summary == f"could not tell: {why}{end}"
