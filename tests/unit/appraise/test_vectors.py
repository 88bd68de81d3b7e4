"""The evidence cases of tests/vectors: each gives the verdict, or the refusal, that it names."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from undercroft.appraise.pipeline import appraise, verify_evidence
from undercroft.base import FormatError, VerificationError
from undercroft.formats.evidence import parse_challenge, parse_evidence, parse_trust
from undercroft.policy import parse_policy
from undercroft.reference.serialise import parse_reference_set

VECTORS = Path(__file__).parents[2] / "vectors" / "evidence"
RECORDED = VECTORS.with_name("evidence-recorded")
"""What real guests answered: Debian 12's cloud kernel under QEMU, with OVMF and swtpm; left alone,
with a function patched by a kernel module, and with a process unlinked from the task list."""


def _builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("evidence_vectors", VECTORS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


build = _builder()


def outcome(folder: Path) -> dict[str, Any]:
    """Return what the pipeline makes of a case, from its files alone."""

    def read(name: str) -> bytes:
        return (folder / name).read_bytes()

    now = json.loads(read("expected.json"))["appraised_at"]
    challenge, trust = parse_challenge(read("challenge.json")), parse_trust(read("trust.json"))
    references = parse_reference_set(read("references.json"))
    policy = parse_policy(read("policy.toml").decode())
    try:
        verified = verify_evidence(parse_evidence(read("evidence.cmw")), trust, challenge)
    except VerificationError as error:
        return {"appraised_at": now, "refused": error.check}
    except FormatError as error:
        return {"appraised_at": now, "refused": error.format_name}
    appraisal = appraise(verified, references, policy, now)
    unmet = sorted({judgement.finding.id for judgement in appraisal.unmet()})
    return {"appraised_at": now, "verdict": appraisal.verdict.label, "unmet": unmet}


@pytest.mark.parametrize("name", build.CASES)
def test_a_case_gives_what_it_names(name: str) -> None:
    folder = VECTORS / name
    assert outcome(folder) == json.loads((folder / "expected.json").read_text())


@pytest.mark.parametrize("name", ["honest", "inline-patch", "hidden-process"])
def test_a_recorded_case_gives_the_verdict_it_had(name: str) -> None:
    expected = json.loads((RECORDED / name / "expected.json").read_text())
    assert outcome(RECORDED / name) == expected
    assert (expected["verdict"] == "affirming") is (name == "honest")


@pytest.mark.parametrize("name", build.CASES)
def test_a_case_is_what_its_script_builds(name: str) -> None:
    files = build.CASES[name]().files()
    assert {path.name: path.read_bytes() for path in (VECTORS / name).iterdir()} == files


def test_every_folder_has_a_script() -> None:
    folders = {path.name for path in VECTORS.iterdir() if path.is_dir()} - {"__pycache__"}
    assert folders == set(build.CASES)
