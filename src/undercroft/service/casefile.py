"""A case: one folder with everything that a verdict rests on, so that anyone can reproduce it.

==================  ==========================================================================
file                what
==================  ==========================================================================
evidence.cmw        the evidence as it was collected
challenge.json      the nonce and what was asked for
trust.json          the attestation key that may sign for this guest
references.json     the reference values
policy.toml         the policy
accepted.json       what had been accepted of that key before; absent if nothing was
result.jwt          the attestation result (EAR), signed by the verifier
verifier.pem        the verifier's public key
==================  ==========================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    Trust,
    encode_challenge,
    encode_evidence,
    encode_trust,
    parse_challenge,
    parse_evidence,
    parse_trust,
)
from undercroft.policy import Policy, encode_policy, parse_policy
from undercroft.reference.model import ReferenceSet
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.service.accepted import encode_accepted, parse_accepted
from undercroft.verify.quote import AcceptedState

EVIDENCE = "evidence.cmw"
CHALLENGE = "challenge.json"
TRUST = "trust.json"
REFERENCES = "references.json"
POLICY = "policy.toml"
ACCEPTED = "accepted.json"
RESULT = "result.jwt"
VERIFIER = "verifier.pem"


@dataclass(frozen=True, slots=True)
class Case:
    """What a verdict rests on: evidence, what was asked, whom we trust, and what is good.

    ``last`` is the state of the evidence that was accepted before it, None if there was none.
    """

    evidence: Evidence
    challenge: Challenge
    trust: Trust
    references: ReferenceSet
    policy: Policy
    last: AcceptedState | None = None


def save_case(folder: Path, case: Case) -> None:
    """Write ``case`` into ``folder``, which is made if need be."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / EVIDENCE).write_bytes(encode_evidence(case.evidence))
    (folder / CHALLENGE).write_bytes(encode_challenge(case.challenge))
    (folder / TRUST).write_bytes(encode_trust(case.trust))
    (folder / REFERENCES).write_bytes(encode_reference_set(case.references))
    (folder / POLICY).write_text(encode_policy(case.policy))
    if case.last is None:
        (folder / ACCEPTED).unlink(missing_ok=True)
    else:
        (folder / ACCEPTED).write_bytes(encode_accepted(case.trust.guest, case.last))


def load_case(
    folder: Path,
    *,
    trust: Path | None = None,
    references: Path | None = None,
    policy: Path | None = None,
) -> Case:
    """Read a case; a part given by its own path is taken from there and not from the folder.

    Raises FormatError for a part that is not well formed, EnvironmentFault for one that is not
    there.
    """
    return Case(
        evidence=parse_evidence(read_part(folder / EVIDENCE)),
        challenge=parse_challenge(read_part(folder / CHALLENGE)),
        trust=parse_trust(read_part(trust or folder / TRUST)),
        references=parse_reference_set(read_part(references or folder / REFERENCES)),
        policy=read_policy(policy or folder / POLICY),
        last=_last(folder / ACCEPTED),
    )


def _last(path: Path) -> AcceptedState | None:
    return parse_accepted(read_part(path)) if path.exists() else None


def read_policy(path: Path) -> Policy:
    """Read a policy file.  Raises FormatError, EnvironmentFault."""
    try:
        return parse_policy(read_part(path).decode())
    except UnicodeDecodeError as error:
        raise FormatError("policy", error.start, "not UTF-8 text") from error


def read_part(path: Path) -> bytes:
    """Read one file of a case.  Raises EnvironmentFault, naming the file."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read: {error.strerror}",
            where=str(path),
            remedy="a case is a folder as `undercroft evidence collect` writes it",
        ) from error


def save_result(folder: Path, result: str, verifier: ec.EllipticCurvePublicKey) -> None:
    """Write the signed attestation result and the key that verifies it."""
    (folder / RESULT).write_text(result + "\n")
    (folder / VERIFIER).write_bytes(
        verifier.public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )


def load_result(folder: Path) -> tuple[str, ec.EllipticCurvePublicKey] | None:
    """Return the saved result and the verifier's key; None if the case has no result yet.

    Raises FormatError if the key is not a P-256 public key in PEM.
    """
    if not (folder / RESULT).is_file():
        return None
    try:
        key = serialization.load_pem_public_key(read_part(folder / VERIFIER))
    except (ValueError, UnsupportedAlgorithm) as error:
        raise FormatError(VERIFIER, 0, f"not a public key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise FormatError(VERIFIER, 0, "not an elliptic-curve key", got=type(key).__name__)
    return read_part(folder / RESULT).decode(errors="replace").strip(), key
