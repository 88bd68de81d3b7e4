"""Every test adversary against every fact: what sees it, where, and that the honest guest passes.

One guest for all.  Each adversary is loaded, looked at while it does nothing yet, switched on,
looked at, and removed.  What counts is what its being on adds: that a module of ours is loaded is
a finding of its own.  ``docs/adversaries.md`` is made from the results
(``UNDERCROFT_WRITE_DOCS=1``) and compared with them otherwise.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.base import Finding, Outcome
from undercroft.guests.run import Guest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.testing.adversaries import CASES, Case, Scene, failed, staged

pytestmark = pytest.mark.guest

EXPECTED_OF_IDLE = {"kernel.modules.text", "kernel.closure.alias", "kernel.bpf.watchers"}
"""What may be said while an adversary is loaded and does nothing: that no package has its code.

``inline_patch`` makes its second mapping as it is loaded; ``hide_bpf`` wants a program that runs.
"""
DOCUMENT = Path(__file__).parents[2] / "docs" / "adversaries.md"


@pytest.fixture(scope="module")
def rows() -> dict[str, str]:
    """Lines of the document, by technique."""
    return {}


@pytest.fixture(scope="module")
def scene(start_guest: Callable[..., Guest], guest_home: Path) -> Iterator[Scene]:
    guest = start_guest()
    os.environ["UNDERCROFT_HOME"] = str(guest_home)
    target = wiring.open_target(f"qemu:{guest.info.name}")
    kernel = SecureKernel(target.guest, target.image, target.kernel.library, target.files)
    with staged(guest, kernel) as made:
        assert failed(made.facts()) == {}
        yield made
    guest.stop()


def row(case: Case, seen: dict[str, Finding]) -> str:
    """Return the line of the document."""
    result = "seen" if seen else "**not caught**"
    if seen and all(fact.outcome is Outcome.UNKNOWN for fact in seen.values()):
        result = "reported, a person must tell"
    if case.note:
        result += f": {case.note}"
    by = ", ".join(f"`{name}`" for name in sorted(seen)) or "–"
    return f"| {case.technique} | {case.seen_in} | {by} | {result} |"


def is_new(name: str, case: Case, idle: dict[str, Finding], active: dict[str, Finding]) -> bool:
    """Whether the fact fails because the adversary is on; the case's first must name the place."""
    named = case.names in json.dumps(active[name].as_json())
    if (name,) == case.facts[:1] and not named:
        return False
    if name not in idle:
        return True
    return name in case.facts and named and case.names not in json.dumps(idle[name].as_json())


@pytest.mark.parametrize("case", CASES, ids=[case.technique for case in CASES])
def test_an_adversary_is_seen_and_the_honest_guest_is_not(
    case: Case, scene: Scene, rows: dict[str, str]
) -> None:
    with case.attack(scene) as switch:
        idle = failed(scene.facts())
        switch(True)
        active = failed(scene.facts())
        switch(False)
        quiet = failed(scene.facts())
    honest = failed(scene.facts())
    seen = {name: fact for name, fact in active.items() if is_new(name, case, idle, active)}
    rows[case.technique] = row(case, seen)
    assert set(case.facts) <= set(seen), json.dumps([f.as_json() for f in active.values()])[:4000]
    if not case.facts:
        assert seen == {}, "it is seen now: say so in the table"
    assert set(quiet) == set(idle)
    assert set(idle) <= EXPECTED_OF_IDLE, json.dumps([f.as_json() for f in idle.values()])[:4000]
    assert honest == {}
    assert "Oops" not in scene.guest.console("dmesg | grep -E 'Oops|BUG:' ; true")


def test_the_document_says_what_was_found(rows: dict[str, str]) -> None:
    text = DOCUMENT.read_text()
    if os.environ.get("UNDERCROFT_WRITE_DOCS"):
        assert len(rows) == len(CASES), "run all of this file to write the document"
        head = text[: text.index("| technique")]
        lines = ["| technique | seen in | facts that see it | result |", "|---|---|---|---|"]
        DOCUMENT.write_text(head + "\n".join([*lines, *rows.values()]) + "\n")
        return
    missing = [line for line in rows.values() if line not in text.splitlines()]
    assert missing == []
