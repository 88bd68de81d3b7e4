"""What `undercroft inspect` says of the proof, and what it makes of a proof that was saved."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, FormatError
from undercroft.cli import proof, render
from undercroft.securekernel.linux import manifest

PROOF: manifest.Manifest = {
    "format": manifest.FORMAT,
    "text": {
        "bytes": 1000,
        "unexplained": 0,
        "rules": {
            "return": {"sites": 1200, "changed": 1100},
            "smp-lock": {"sites": 30, "changed": 0},
        },
    },
    "modules": {"bytes": 200, "constant_bytes": 34, "unexplained": 0},
}


def printed(document: manifest.Manifest) -> str:
    console = render.console(record=True)
    console.width = 120
    console.print(proof.proof_view(document))
    return console.export_text()


def saved(tmp_path: Path, document: object) -> Path:
    path = tmp_path / "before.json"
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    return path


def test_the_proof_is_rules_and_a_sum() -> None:
    text = printed(PROOF)
    assert "return" in text
    assert "1,200" in text
    assert "1,234 bytes compared" in text
    assert "1,100 places are lawfully not as packaged; 0 bytes unexplained" in text
    assert f"proof sha256:{manifest.digest(PROOF)}" in text


def test_the_same_proof_has_no_differences(tmp_path: Path) -> None:
    assert proof.differences_to(PROOF, saved(tmp_path, {"proof": PROOF})) == []


def test_a_difference_is_named(tmp_path: Path) -> None:
    before = {**PROOF, "text": {**PROOF["text"], "unexplained": 5}}  # type: ignore[dict-item]
    changed = proof.differences_to(PROOF, saved(tmp_path, {"proof": before}))
    assert changed == ["text.unexplained: 5 became 0"]
    console = render.console(record=True)
    proof.say_compared(console, tmp_path / "before.json", changed * 20)
    text = console.export_text()
    assert "not the proof in" in text
    assert "and 8 more" in text
    proof.say_compared(console, tmp_path / "before.json", [])
    assert "the same proof as in" in console.export_text()


@pytest.mark.parametrize("document", ["{", {"proof": None}, {"proof": {"format": "x"}}, []])
def test_what_holds_no_proof_is_refused(tmp_path: Path, document: object) -> None:
    with pytest.raises(FormatError):
        proof.differences_to(PROOF, saved(tmp_path, document))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault):
        proof.differences_to(PROOF, tmp_path / "none")
