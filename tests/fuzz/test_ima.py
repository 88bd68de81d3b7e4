"""The IMA fuzz targets under hypothesis: mutated vectors and bytes out of nothing."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st


def _load() -> ModuleType:
    path = Path(__file__).with_name("ima.py")
    spec = importlib.util.spec_from_file_location("fuzz_ima", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _load()
CORPUS: list[bytes] = fuzz.corpus()


def test_the_corpus_is_not_empty_and_every_target_takes_it() -> None:
    assert len(CORPUS) >= 40
    for target in fuzz.TARGETS.values():
        for data in CORPUS:
            target(data)


def test_a_missing_corpus_is_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fuzz, "VECTORS", tmp_path)
    with pytest.raises(FileNotFoundError, match="is empty"):
        fuzz.corpus()


@st.composite
def _mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(CORPUS)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "number", "copy"]))
        if kind == "set" and at < len(data):
            data[at] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "copy":
            start = draw(st.integers(0, len(data)))
            data[at:at] = data[start : start + draw(st.integers(1, 200))]
        else:
            edges = [0, 1, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
            data[at : at + 4] = draw(st.sampled_from(edges)).to_bytes(4, "little")
    return bytes(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(_mutated())
def test_mutated_vectors(data: bytes) -> None:
    for target in fuzz.TARGETS.values():
        target(data)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=200))
def test_bytes_out_of_nothing(data: bytes) -> None:
    for target in fuzz.TARGETS.values():
        target(data)
