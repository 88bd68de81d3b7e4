"""A short run of every fuzz target: over its committed corpus, near it, and under hypothesis."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from undercroft.testing.fuzzing import Suite, Target, changed

HERE = Path(__file__).parent
SUITES = ("eventlog", "evidence", "ima", "images", "tpm")
CHANGES = 80
"""Per file and target of a suite with its own corpora."""


def _load(name: str) -> Suite:
    spec = importlib.util.spec_from_file_location(f"fuzz_{name}", HERE / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    suite = module.SUITE
    assert isinstance(suite, Suite)
    return suite


ALL = {name: _load(name) for name in SUITES}
EACH = [(suite, target) for suite, loaded in ALL.items() for target in loaded.targets]


@pytest.mark.parametrize(("suite", "target"), EACH)
def test_the_corpus_and_what_is_near_it(suite: str, target: str) -> None:
    one, run = ALL[suite], ALL[suite].targets[target]
    run(b"")
    paths = one.inputs(target)
    # Vectors are many, and every target takes all of them.
    changes = CHANGES if not one.vectors else 20
    for path in paths:
        data = path.read_bytes()
        run(data)
        if len(data) <= one.largest:
            source = random.Random(path.name)
            for _ in range(changes):
                run(changed(data, source))


EDGES = (0, 1, 8, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)


@st.composite
def near(draw: st.DrawFn, inputs: list[bytes]) -> bytes:
    """Draw one of ``inputs`` with parts set, cut, put in, copied, or turned into an edge."""
    data = bytearray(draw(st.sampled_from(inputs)))
    for _ in range(draw(st.integers(1, 4))):
        at = draw(st.integers(0, len(data)))
        kind = draw(st.sampled_from(["set", "cut", "insert", "number", "copy"]))
        if kind == "set":
            data[at : at + 1] = bytes([draw(st.integers(0, 255))])
        elif kind == "cut":
            del data[at : at + draw(st.integers(1, 40))]
        elif kind == "insert":
            data[at:at] = draw(st.binary(max_size=20))
        elif kind == "copy":
            start = draw(st.integers(0, len(data)))
            data[at:at] = data[start : start + draw(st.integers(1, 200))]
        else:
            order = draw(st.sampled_from(["little", "big"]))
            number = draw(st.sampled_from(EDGES))
            data[at : at + 4] = number.to_bytes(4, "little" if order == "little" else "big")
    return bytes(data)


@pytest.mark.parametrize(("suite", "target"), EACH)
def test_under_hypothesis(suite: str, target: str) -> None:
    one = ALL[suite]
    run: Target = one.targets[target]
    all_inputs = [path.read_bytes() for path in one.inputs(target)]
    inputs = [data for data in all_inputs if len(data) <= one.largest] or [b""]
    examples = 400 if one.vectors else 100

    @settings(max_examples=examples, deadline=None, suppress_health_check=[HealthCheck.too_slow])
    @given(st.one_of(near(inputs), st.binary(max_size=300)))
    def holds(data: bytes) -> None:
        run(data)

    holds()


def test_every_suite_is_here_and_every_corpus_has_a_target() -> None:
    files = {path.stem for path in HERE.glob("*.py") if "\nSUITE = " in path.read_text()}
    assert files == set(SUITES)
    for suite in ALL.values():
        if not suite.vectors:
            assert {path.name for path in suite.corpus.iterdir()} == set(suite.targets)


def test_an_empty_corpus_is_an_error(tmp_path: Path) -> None:
    suite = Suite(tmp_path / "none.py", {"target": lambda _: None})
    with pytest.raises(FileNotFoundError, match="is empty"):
        suite.inputs("target")
