"""A real TPM (swtpm, driven with tpm2-tools): activation, and a fresh recording that verifies.

No guest boots here; the mark says that the test needs programs of the distribution.
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.tpm import (
    PcrSelectionList,
    Public,
    TpmRh,
    parse_public_2b,
    parse_quote,
    parse_statement,
)
from undercroft.verify.ak import verify_ak
from undercroft.verify.certify import verify_certify
from undercroft.verify.credential import challenge_activation, verify_activation
from undercroft.verify.ek import verify_ek, verify_pinned_ek
from undercroft.verify.quote import verify_quote

pytestmark = pytest.mark.guest
RECORDER = Path(__file__).parents[1] / "vectors" / "tpm" / "record.py"


def _load() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_tpm_vectors", RECORDER)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


record = _load()


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A freshly manufactured TPM that has been reset once."""
    with record.fresh_tpm(tmp_path_factory.mktemp("tpm")) as recorder:
        yield recorder


def public(tpm: Any, name: str) -> Public:
    return parse_public_2b(tpm.read(name))


def policy_session(tpm: Any) -> str:
    """Satisfy PolicyA, which the low-range endorsement key asks for."""
    tpm.run("tpm2_startauthsession --policy-session -S session.ctx")
    tpm.run("tpm2_policysecret -S session.ctx -c e")
    return " -P session:session.ctx"


@pytest.mark.parametrize(
    ("handle", "ak", "needs_policy"),
    [
        (record.EK_RSA, "ecc -s ecdsa -g sha256", True),
        # The P-384 key of the high range can also be used with its (empty) password.
        (record.EK_ECC, "rsa -s rsassa -g sha256", False),
    ],
)
def test_the_tpm_opens_the_credential_that_we_made(
    tpm: Any, handle: str, ak: str, needs_policy: bool
) -> None:
    tpm.run(f"tpm2_readpublic -c {handle} -o ek.pub")
    tpm.create_ak(ak, handle)
    ek = verify_ek(public(tpm, "ek.pub"))
    challenge = challenge_activation(
        verify_ak(public(tpm, "ak.pub")), verify_pinned_ek(ek, [ek.name]), os.urandom
    )
    (tpm.folder / "blob").write_bytes(challenge.blob.encode_tools_file())
    session = policy_session(tpm) if needs_policy else ""
    tpm.run(f"tpm2_activatecredential -c ak.ctx -C {handle} -i blob -o secret{session}")
    if session:
        tpm.run("tpm2_flushcontext session.ctx")
    tpm.flush()
    activated = verify_activation(challenge, tpm.read("secret"))
    assert activated.ak.name == tpm.read("ak.name")


def test_a_fresh_recording_verifies(tmp_path: Path) -> None:
    cases = dict(record.record(tmp_path))
    ek = parse_public_2b(bytes.fromhex(cases["identity"]["ek_rsa_public"]))
    parent = ek.qualified_name(TpmRh.ENDORSEMENT.handle_name)
    for name in record.QUOTES:
        case = cases[f"quote-{name}"]
        banks = []
        for label, values in case["pcrs"].items():
            algorithm = HashAlgorithm.from_name(label)
            assert algorithm is not None
            banks.append(PcrBank(algorithm, {int(i): bytes.fromhex(v) for i, v in values.items()}))
        raw = {field: bytes.fromhex(case[field]) for field in case if field != "pcrs"}
        verify_quote(
            parse_quote(raw["attest"], raw["signature"], banks),
            verify_ak(parse_public_2b(raw["ak_public"]), parent=parent),
            record.NONCE,
            PcrSelectionList.of({bank.algorithm: list(bank.values) for bank in banks}),
        )
    case = {field: bytes.fromhex(value) for field, value in cases["certify"].items()}
    verify_certify(
        parse_statement(case["attest"], case["signature"]),
        verify_ak(parse_public_2b(case["ak_public"]), parent=TpmRh.ENDORSEMENT.handle_name),
        parse_public_2b(case["subject_public"]),
        case["qualifying_data"],
    )
    recorded = {path.stem for path in (RECORDER.parent / "recorded").glob("*.json")}
    assert recorded == set(cases)
