"""What every fuzz suite shares: the properties, the corpus, changes near it, atheris by hand.

A suite is a file of ``tests/fuzz`` with a module-level ``SUITE``.  ``tests/fuzz/test_fuzz.py``
runs every target over its committed corpus and near it, and under hypothesis.  By hand, with
atheris (``pip install -e '.[fuzz]'``):

    python tests/fuzz/SUITE.py TARGET [libFuzzer options, such as -max_total_time=60]

New inputs go to build/fuzz/SUITE/TARGET; one that found a fault belongs into the corpus once the
fault is mended.
"""

from __future__ import annotations

import random
import runpy
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeAlias, TypeVar

from undercroft.base import FormatError

Target: TypeAlias = Callable[[bytes], None]
T = TypeVar("T")


class Encodes(Protocol):
    """A value that was parsed and can be written again."""

    def encode(self) -> bytes:
        """Return its bytes."""


@dataclass(frozen=True, slots=True)
class Suite:
    """Targets by name, and where the inputs of each are.

    ``file`` is the file that it stands in.  ``vectors`` are folders whose files every target
    takes, those with one of ``suffixes``; without any each target has a folder of its own under
    ``corpus``.  ``largest`` is up to how many bytes an input is changed in a test.
    """

    file: Path
    targets: Mapping[str, Target]
    vectors: tuple[Path, ...] = ()
    suffixes: frozenset[str] = frozenset()
    largest: int = 8192

    @property
    def name(self) -> str:
        """The suite's name: its file's."""
        return self.file.stem

    @property
    def corpus(self) -> Path:
        """The folder of the targets' own corpora."""
        return self.file.with_name("corpus") / self.name

    def folders(self, target: str) -> tuple[Path, ...]:
        """Return the folders with the inputs of ``target``."""
        return self.vectors or (self.corpus / target,)

    def inputs(self, target: str) -> list[Path]:
        """Return the inputs of ``target``; raises FileNotFoundError if there is none.

        Without inputs a fuzzer would run on nothing and find nothing.
        """
        found = sorted(
            path
            for folder in self.folders(target)
            for path in folder.glob("*")
            if path.is_file() and (not self.suffixes or path.suffix in self.suffixes)
        )
        if not found:
            raise FileNotFoundError(f"the corpus of {self.name} {target} is empty")
        return found


def exact(parse: Callable[[bytes], T], encode: Callable[[T], bytes]) -> Target:
    """Only FormatError escapes, with an offset inside; what parses encodes to the input."""

    def target(data: bytes) -> None:
        try:
            value = parse(data)
        except FormatError as error:
            if not 0 <= error.offset <= len(data):
                raise AssertionError(f"offset {error.offset} of {len(data)}") from error
            return
        if encode(value) != data:
            raise AssertionError("encode(parse(x)) is not x")

    return target


def plain(parse: Callable[[bytes], Encodes]) -> Target:
    """Return :func:`exact` of a value that encodes itself."""
    return exact(parse, lambda value: value.encode())


def survives(parse: Callable[[bytes], T], encode: Callable[[T], bytes]) -> Target:
    """Only FormatError escapes; what parses is the same value, written and read again.

    For formats that have more than one spelling.
    """

    def target(data: bytes) -> None:
        try:
            value = parse(data)
        except FormatError:
            return
        if parse(encode(value)) != value:
            raise AssertionError("parse(encode(x)) is not x")

    return target


def reads(parse: Callable[[bytes], object]) -> Target:
    """Only FormatError escapes: for what is never written."""

    def target(data: bytes) -> None:
        try:
            parse(data)
        except FormatError:
            return

    return target


def changed(data: bytes, source: random.Random) -> bytes:
    """Return ``data`` with a few bytes changed, cut out, put in or repeated."""
    out = bytearray(data)
    for _ in range(source.randint(1, 3)):
        at = source.randint(0, len(out))
        size = source.choice((0, 1, 1, 2, 4))
        fill = source.choice((b"\0", b"\xff", b"\x7f", b"\x80", source.randbytes(1)))
        out[at : at + size] = fill * source.choice((0, 1, 1, 2, 4))
    return bytes(out)


def fuzz_by_hand(file: str, targets: Mapping[str, Target]) -> int:
    """Fuzz the target that the command line names first; the rest goes to libFuzzer."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in targets:
        sys.stderr.write("targets: " + " ".join(targets) + "\n")
        return 2
    import atheris

    name, *options = arguments
    # Import everything again, instrumented: instrumenting all of Python would take a minute.
    for module in [module for module in sys.modules if module.startswith("undercroft")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["undercroft"]):
        suite = runpy.run_path(file)["SUITE"]
    found = suite.file.parents[2] / "build" / "fuzz" / suite.name / name
    found.mkdir(parents=True, exist_ok=True)
    suite.inputs(name)
    folders = [str(folder) for folder in (found, *suite.folders(name))]
    artifacts = f"-artifact_prefix={found}/fault-"
    atheris.Setup([sys.argv[0], artifacts, *options, *folders], suite.targets[name])
    atheris.Fuzz()
    return 0
