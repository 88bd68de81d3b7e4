"""A short, repeatable run of every image fuzz target over its committed corpus and near it."""

from __future__ import annotations

import importlib.util
import random
import sys
from pathlib import Path
from types import ModuleType

import pytest

MUTATIONS = 80
"""Per file; fuzzing for real is done by hand with images.py."""
MAX_MUTATED = 1 << 17
"""Larger files are run as they are: mutating them takes too long here."""


def _load() -> ModuleType:
    path = Path(__file__).with_name("images.py")
    spec = importlib.util.spec_from_file_location("fuzz_images", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


fuzz = _load()


def mutated(data: bytes, source: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, cut out, put in or repeated."""
    out = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randint(0, len(out))
        size = source.choice((0, 1, 1, 2, 4))
        fill = source.choice((b"\0", b"\xff", b"\x7f", b"\x80", source.randbytes(1)))
        out[at : at + size] = fill * source.choice((0, 1, 1, 2, 4))
    return bytes(out)


@pytest.mark.parametrize("name", fuzz.TARGETS)
def test_the_corpus_and_what_is_near_it(name: str) -> None:
    files = sorted((fuzz.CORPUS / name).glob("*"))
    assert files, f"the corpus of {name} is empty: a fuzzer would run on nothing"
    target = fuzz.TARGETS[name]
    target(b"")
    for path in files:
        data = path.read_bytes()
        target(data)
        if len(data) > MAX_MUTATED:
            continue
        source = random.Random(path.name)
        for _ in range(MUTATIONS):
            target(mutated(data, source))


def test_every_corpus_has_a_target() -> None:
    assert {path.name for path in fuzz.CORPUS.iterdir()} == set(fuzz.TARGETS)
