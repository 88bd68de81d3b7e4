"""``undercroft verify`` on saved cases: the same verdict again, and every defect refused."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from undercroft import wiring
from undercroft.base import (
    Finding,
    FormatError,
    HashAlgorithm,
    Outcome,
    PcrBank,
    VerificationError,
)
from undercroft.formats.evidence import Evidence, encode_evidence, parse_evidence
from undercroft.service.casefile import EVIDENCE, RESULT, Case, save_case, save_result
from undercroft.service.verifier import ResultSigner, appraise_case
from undercroft.testing.attester import AkKind
from undercroft.testing.guest import FACTS, NOW, SimulatedGuest, standard_boot

POLICY = wiring.shipped_policy("direct-boot")
SIGNER = ResultSigner(ec.generate_private_key(ec.SECP256R1()))


def case_of(guest: SimulatedGuest) -> Case:
    challenge = guest.challenge()
    evidence = guest.evidence(challenge)
    return Case(evidence, challenge, guest.trust, guest.predicted(), POLICY)


@pytest.fixture
def honest() -> Case:
    return case_of(SimulatedGuest(boot=standard_boot(secure_boot=False)))


def saved(folder: Path, case: Case) -> Path:
    save_case(folder, case)
    save_result(folder, SIGNER.sign(appraise_case(case, NOW)), SIGNER.public)
    return folder


def verify(
    *arguments: str | Path, home: str | Path = "/nonexistent"
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "undercroft.cli", "verify", *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"COLUMNS": "200", "PATH": "/usr/bin", "UNDERCROFT_HOME": str(home)},
    )


def test_an_honest_case_is_affirmed_again(honest: Case, tmp_path: Path) -> None:
    done = verify(saved(tmp_path, honest))
    assert done.returncode == 0, done.stderr
    assert "AFFIRMING" in done.stdout


def test_json_has_the_verdict_and_every_finding(honest: Case, tmp_path: Path) -> None:
    done = verify(saved(tmp_path, honest), "--json")
    document = json.loads(done.stdout)
    assert document["verdict"] == "affirming"
    assert {"quote.fresh", "kernel.text", "ima.files"} <= {f["id"] for f in document["findings"]}


def test_a_failed_fact_contraindicates_with_status_3(tmp_path: Path) -> None:
    bad = Finding("kernel.text", Outcome.FAIL, "13 bytes are not explained")
    facts = tuple(bad if fact.id == bad.id else fact for fact in FACTS)
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False), facts=facts)
    done = verify(saved(tmp_path, case_of(guest)))
    assert done.returncode == 3
    assert "13 bytes are not explained" in done.stdout


def test_a_missing_fact_is_not_enough_with_status_4(tmp_path: Path) -> None:
    facts = tuple(fact for fact in FACTS if fact.id != "kernel.text")
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False), facts=facts)
    done = verify(saved(tmp_path, case_of(guest)))
    assert done.returncode == 4
    assert "kernel.text" in done.stdout


def test_old_evidence_affirms_nothing_now(honest: Case, tmp_path: Path) -> None:
    case = saved(tmp_path / "case", honest)
    assert verify(case, "--at", "now", home=tmp_path).returncode == 4


def test_evidence_of_a_vtpm_that_went_back_is_refused(tmp_path: Path) -> None:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    older = saved(tmp_path / "older", case_of(guest))
    guest.attester.advance(1)
    newer = saved(tmp_path / "newer", case_of(guest))
    assert verify(newer, "--at", "now", home=tmp_path).returncode == 4
    assert verify(newer, "--at", "now", home=tmp_path).returncode == 4, "the same again"
    refused = verify(older, "--at", "now", home=tmp_path)
    assert refused.returncode == 5
    assert "quote.clock" in refused.stderr
    assert "rolled back or cloned" in refused.stderr
    assert verify(older, "--at", "now", "--no-state", home=tmp_path).returncode == 4
    assert verify(older, home=tmp_path).returncode == 0, "as it was appraised at the time"


def test_a_time_that_is_none_is_refused(honest: Case, tmp_path: Path) -> None:
    done = verify(saved(tmp_path, honest), "--at", "yesterday")
    assert done.returncode == 1
    assert "not a time" in done.stderr


Spoil = Callable[[Evidence], Evidence]


def _pcrs(evidence: Evidence, bank: PcrBank) -> Evidence:
    return replace(evidence, quote=replace(evidence.quote, claimed_pcrs=(bank,)))


def _other_selection(evidence: Evidence) -> Evidence:
    (bank,) = evidence.quote.claimed_pcrs
    fewer = {index: value for index, value in bank.values.items() if index != 14}
    return _pcrs(evidence, PcrBank(HashAlgorithm.SHA256, fewer))


def _other_value(evidence: Evidence) -> Evidence:
    (bank,) = evidence.quote.claimed_pcrs
    return _pcrs(evidence, PcrBank(bank.algorithm, {**bank.values, 4: bytes(32)}))


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda e: replace(e, eventlog=(e.eventlog or b"")[:-7]), "a part was changed"),
        (lambda e: replace(e, ima_list=b""), "a part was changed"),
        (_other_selection, "quote.claimed-pcrs"),
        (_other_value, "quote.pcr-digest"),
        (lambda e: replace(e, record=(e.record or b"") + b"\0"), "a part was changed"),
        (lambda e: replace(e, quote=replace(e.quote, attest=e.quote.attest[:-1])), "TPMS_ATTEST"),
    ],
    ids=["log cut", "no IMA entries", "other PCRs", "other value", "record", "quote cut"],
)
def test_what_is_not_authentic_is_refused_with_status_5(
    honest: Case, tmp_path: Path, spoil: Spoil, says: str
) -> None:
    saved(tmp_path, honest)
    save_case(tmp_path, replace(honest, evidence=spoil(honest.evidence)))
    done = verify(tmp_path)
    assert done.returncode == 5, done.stdout
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


def test_a_quote_for_another_nonce_is_refused(honest: Case, tmp_path: Path) -> None:
    saved(tmp_path, honest)
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    save_case(tmp_path, replace(honest, challenge=guest.challenge(nonce=b"another nonce 16")))
    done = verify(tmp_path)
    assert done.returncode == 5
    assert "quote.nonce" in done.stderr


def test_a_quote_by_another_key_is_refused(honest: Case, tmp_path: Path) -> None:
    saved(tmp_path, honest)
    stranger = SimulatedGuest(kind=AkKind.RSASSA)
    save_case(tmp_path, replace(honest, trust=stranger.trust))
    done = verify(tmp_path)
    assert done.returncode == 5
    assert "evidence.ak" in done.stderr


def test_one_flipped_bit_in_the_evidence_is_refused(honest: Case, tmp_path: Path) -> None:
    saved(tmp_path, honest)
    data = bytearray((tmp_path / EVIDENCE).read_bytes())
    data[len(data) // 2] ^= 1
    (tmp_path / EVIDENCE).write_bytes(data)
    assert verify(tmp_path).returncode == 5


def test_every_byte_of_the_evidence_is_vouched_for(honest: Case) -> None:
    good = encode_evidence(honest.evidence)
    accepted = []
    for offset in range(len(good)):
        data = bytearray(good)
        data[offset] ^= 1 << offset % 8
        with contextlib.suppress(FormatError, VerificationError):
            appraise_case(replace(honest, evidence=parse_evidence(bytes(data))), NOW)
            accepted.append(offset)
    assert accepted == []


def test_a_log_that_the_collector_itself_cut_is_refused(tmp_path: Path) -> None:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    saved(tmp_path, case_of(guest))
    guest.log = guest.log[:-7]
    save_case(tmp_path, case_of(guest))
    done = verify(tmp_path)
    assert done.returncode == 5
    assert "longer than the input" in done.stderr


def test_an_empty_ima_list_vouches_for_nothing(honest: Case, tmp_path: Path) -> None:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False), files={})
    saved(tmp_path, honest)
    challenge = guest.challenge()
    bound = guest.evidence(challenge, ima_list=b"")
    save_case(tmp_path, replace(honest, evidence=bound))
    done = verify(tmp_path)
    assert done.returncode == 5
    assert "ima" in done.stderr


def test_a_case_without_its_result_asks_for_the_time(honest: Case, tmp_path: Path) -> None:
    save_case(tmp_path, honest)
    done = verify(tmp_path)
    assert done.returncode == 1
    assert "--at" in done.stderr
    assert verify(tmp_path, "--at", str(NOW)).returncode == 0


def test_a_result_that_another_key_signed_is_refused(honest: Case, tmp_path: Path) -> None:
    saved(tmp_path, honest)
    other = ResultSigner(ec.generate_private_key(ec.SECP256R1()))
    (tmp_path / RESULT).write_text(other.sign(appraise_case(honest, NOW)))
    done = verify(tmp_path)
    assert done.returncode == 5
    assert "ear.signature" in done.stderr


def test_a_folder_that_is_no_case_is_our_failure(tmp_path: Path) -> None:
    done = verify(tmp_path)
    assert done.returncode == 1
    assert EVIDENCE in done.stderr
    assert verify().returncode == 2
