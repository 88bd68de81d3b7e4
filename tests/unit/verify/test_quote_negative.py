"""The negative suite: evidence with one defect, refused by exactly the check that it names."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.tpm import PcrSelectionList, parse_public, parse_quote
from undercroft.verify import ak as ak_module
from undercroft.verify import quote as quote_module
from undercroft.verify.ak import verify_ak
from undercroft.verify.quote import AcceptedState, VerifiedQuote, verify_quote

VECTORS = Path(__file__).parents[2] / "vectors" / "tpm"
FILES = sorted((VECTORS / "negative").glob("*.json"))


def build_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_tpm_vectors", VECTORS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def algorithm(name: str) -> HashAlgorithm:
    found = HashAlgorithm.from_name(name)
    assert found is not None
    return found


def verify(case: dict[str, Any]) -> VerifiedQuote:
    """Run one case as any verifier would: from its bytes."""
    unhex = bytes.fromhex
    claimed = [
        PcrBank(algorithm(name), {int(i): unhex(value) for i, value in values.items()})
        for name, values in case["claimed_pcrs"]
    ]
    selection = {algorithm(n): indices for n, indices in case["expected_selection"].items()}
    parent, last = case["expected_parent"], case["last_accepted"]
    ak = verify_ak(
        parse_public(unhex(case["ak_public"])), parent=None if parent is None else unhex(parent)
    )
    state = None if last is None else AcceptedState(**{**last, "ak_name": unhex(last["ak_name"])})
    return verify_quote(
        parse_quote(unhex(case["attest"]), unhex(case["signature"]), claimed),
        ak,
        unhex(case["expected_qualifying_data"]),
        PcrSelectionList.of(selection),
        state,
    )


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_exactly_the_named_check_refuses(path: Path) -> None:
    case = json.loads(path.read_text())
    if case["check"] is None:
        verify(case)
        return
    with pytest.raises(VerificationError) as caught:
        verify(case)
    assert caught.value.check == case["check"]
    assert caught.value.expected
    assert caught.value.where == case["check"]


def test_the_suite_has_a_case_for_every_check_of_quotes_and_the_attributes_of_keys() -> None:
    covered = {json.loads(path.read_text())["check"] for path in FILES}
    wanted = {check.id for check in quote_module.CHECKS}
    wanted |= {ak_module.A2_ATTRIBUTES.id, ak_module.A3_SCHEME.id}
    assert covered == {None, *wanted}


def test_the_committed_suite_is_what_the_script_builds() -> None:
    committed = {path.name: path.read_text() for path in FILES}
    assert committed == build_script().texts()


@pytest.mark.parametrize(
    "name",
    [
        "relabelled-selection",
        "bank-swap",
        "duplicate-selection",
        "missing-pcr",
        "wrong-magic",
        "wrong-type",
        "wrong-nonce",
        "padded-nonce",
        "truncated-nonce",
        "reset-rollback",
        "clock-rollback",
        "wrong-key",
        "ecdsa-zero-r",
        "ecdsa-zero-s",
        "unrestricted-ak",
        "good-ecdsa-p256",
        "good-rsassa",
    ],
)
def test_what_the_suite_must_never_lose(name: str) -> None:
    assert VECTORS / "negative" / f"{name}.json" in FILES
