"""The fact about processor features: what makes it pass, fail and unknown."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from undercroft.base import FormatError, MemoryFault, Outcome
from undercroft.reference.kernel.replay import Replay
from undercroft.securekernel.linux import features
from undercroft.securekernel.linux.live import LiveKernel

SMAP = 20
SHOWN = {(7, 0, "EBX"): 1 << SMAP}


class Names:
    """Names of a kernel with one word of features."""

    words = 1

    def __init__(self, _image: object) -> None:
        pass

    def register(self, feature: int) -> tuple[int, int, str] | None:
        return (7, 0, "EBX") if feature < 32 else None

    def name(self, feature: int) -> str:
        return {SMAP: "smap"}.get(feature, str(feature))


def look(
    monkeypatch: pytest.MonkeyPatch,
    *,
    code: bool = True,
    claim: bool = True,
    cpuid: tuple[Any, ...] = (SHOWN,),
    names: Any = Names,
    fault: bool = False,
) -> Any:
    def read(_at: int, size: int) -> bytes:
        if fault:
            raise MemoryFault(0x1000)
        return (int(claim) << SMAP).to_bytes(4, "little") + bytes(size - 4)

    monkeypatch.setattr(features, "FeatureNames", names)
    live = SimpleNamespace(symbol=lambda _: 0, offset=lambda *_: 0, read=read)
    choices = SimpleNamespace(shown_features=lambda: {SMAP: code})
    replay = SimpleNamespace(image=None, choices=choices)
    return features.collect(cast(LiveKernel, live), cast(Replay, replay), lambda: cpuid)


def test_code_for_the_processor_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = look(monkeypatch)
    assert finding.outcome is Outcome.PASS
    assert "1 features" in finding.summary


def test_a_feature_that_the_hypervisor_does_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = look(monkeypatch, cpuid=({(7, 0, "EBX"): 0},))
    assert finding.outcome is Outcome.FAIL
    assert "smap; the hypervisor" in finding.summary


def test_a_feature_that_the_kernel_denies(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = look(monkeypatch, code=False)
    assert finding.outcome is Outcome.FAIL
    assert "smap; boot_cpu_data" in finding.summary


def test_a_feature_that_the_kernel_does_without(monkeypatch: pytest.MonkeyPatch) -> None:
    finding = look(monkeypatch, code=False, claim=False)
    assert finding.outcome is Outcome.PASS
    assert finding.summary.endswith("does without smap")


def test_what_keeps_us_from_comparing_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_image: object) -> Names:
        raise FormatError("BTF", 0, "there is no enum")

    assert look(monkeypatch, cpuid=()).outcome is Outcome.UNKNOWN
    assert look(monkeypatch, names=refuse).outcome is Outcome.UNKNOWN
    assert look(monkeypatch, fault=True).outcome is Outcome.UNKNOWN
    live = cast(LiveKernel, None)
    assert features.collect(live, None, lambda: ()).outcome is Outcome.UNKNOWN
