"""The verifier's use cases: challenge, appraise, sign, and do it again offline."""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass, replace
from pathlib import Path

import jwt
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

import undercroft
from undercroft.appraise.ear import ear_claims, sign_ear, verify_ear
from undercroft.appraise.model import Appraisal
from undercroft.appraise.pipeline import appraise, judge_of, verify_evidence
from undercroft.appraise.verified import trusted_key
from undercroft.base import (
    EnvironmentFault,
    FormatError,
    HashAlgorithm,
    Nonce,
    VerificationError,
)
from undercroft.formats.ear import VerifierId
from undercroft.formats.evidence import Challenge
from undercroft.formats.launch import LAUNCH_PCRS
from undercroft.policy import Policy
from undercroft.service.accepted import AcceptedStates
from undercroft.service.casefile import Case, load_result
from undercroft.verify.quote import (
    Q10_STATE,
    Q11_FIRMWARE,
    Q12_RESET,
    Q13_RESTART,
    Q14_CLOCK,
    AcceptedState,
)

PROGRESS_CHECKS = (Q10_STATE, Q11_FIRMWARE, Q12_RESET, Q13_RESTART, Q14_CLOCK)
"""Checks of a quote against what was accepted before it."""
NONCE_SIZE = 32
IMA_PCR = 10


def new_challenge(policy: Policy, now: int) -> Challenge:
    """Return a fresh challenge for the PCRs and banks that ``policy`` asks for, and those of
    IMA's list and of the secure kernel's launch.
    """
    pcrs = tuple(sorted({*policy.boot.pcrs, IMA_PCR, *LAUNCH_PCRS}))
    banks = policy.quote.banks or (HashAlgorithm.SHA256,)
    return Challenge(Nonce(secrets.token_bytes(NONCE_SIZE)), dict.fromkeys(banks, pcrs), now)


def appraise_case(case: Case, now: int) -> Appraisal:
    """Verify and appraise a case as of ``now`` (Unix s).

    Raises FormatError or VerificationError for evidence that is not authentic, or is older than
    the case says was accepted before it.
    """
    return _appraise(case, now)[0]


def _appraise(case: Case, now: int) -> tuple[Appraisal, AcceptedState]:
    verified = verify_evidence(case.evidence, case.trust, case.challenge, last=case.last)
    judge = judge_of(case.references, case.policy, case.tables)
    appraisal = appraise(verified, case.references, case.policy, now, judge=judge, host=case.host)
    return appraisal, verified.quote.accepted_state


def accept_case(case: Case, now: int, states: AcceptedStates) -> tuple[Case, Appraisal]:
    """Appraise a case that must not be older than what ``states`` say was accepted; remember it.

    What is authentic is remembered, whatever the verdict.  Returns the case with the state that
    it was held to.  Raises as :func:`appraise_case`.
    """
    name = trusted_key(case.trust).name
    held = replace(case, last=states.load(name))
    try:
        appraisal, state = _appraise(held, now)
    except VerificationError as error:
        if error.check not in {check.id for check in PROGRESS_CHECKS}:
            raise
        raise VerificationError(
            error.check,
            error.what,
            expected=error.expected,
            got=error.got,
            remedy="the vTPM's state was rolled back or cloned; if it was cleared by its owner "
            f"(TPM2_Clear), remove {states.path(name)}",
        ) from error
    states.accept(case.trust.guest, state)
    return held, appraisal


def appraised_at(folder: Path) -> int:
    """Return when a saved case was appraised, as its signed result says.

    Raises EnvironmentFault if there is no result, FormatError or VerificationError if it was not
    signed by the key beside it.
    """
    saved = load_result(folder)
    if saved is None:
        raise EnvironmentFault(
            "this case has no result that says when it was appraised",
            where=str(folder),
            remedy="say as of when to appraise it: --at SECONDS, or --at now",
        )
    token, key = saved
    try:
        return verify_ear(token, key, _issued_at(token)).issued_at
    except ValueError as error:
        raise FormatError("verifier.pem", 0, str(error)) from error


def _issued_at(token: str) -> int:
    """Return the time that a token claims for itself, unverified.

    It is what an old result is then verified as of, so a false one only makes that fail.
    """
    try:
        claims = jwt.decode(token, options={"verify_signature": False})
    except jwt.InvalidTokenError as error:
        raise FormatError("EAR JWT", 0, str(error)) from error
    issued = claims.get("iat")
    if not isinstance(issued, int):
        raise FormatError("EAR JWT", 0, "no time of issue", expected="iat")
    return issued


@dataclass(frozen=True, slots=True)
class ResultSigner:
    """The verifier's identity: an ES256 key that signs attestation results."""

    key: ec.EllipticCurvePrivateKey

    @classmethod
    def load(cls, folder: Path) -> ResultSigner:
        """Return the verifier's key in ``folder``, made at first use (mode 0600)."""
        path = folder / "result-key.pem"
        if not path.is_file():
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            pem = ec.generate_private_key(ec.SECP256R1()).private_bytes(
                serialization.Encoding.PEM,
                serialization.PrivateFormat.PKCS8,
                serialization.NoEncryption(),
            )
            descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(pem)
        key = serialization.load_pem_private_key(path.read_bytes(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise FormatError(path.name, 0, "not an elliptic-curve key", got=type(key).__name__)
        return cls(key)

    @property
    def public(self) -> ec.EllipticCurvePublicKey:
        """The key that relying parties verify results with."""
        return self.key.public_key()

    def key_id(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of the public key."""
        der = self.public.public_bytes(
            serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        digest = hashes.Hash(hashes.SHA256())
        digest.update(der)
        return digest.finalize().hex()[:16]

    def sign(self, appraisal: Appraisal) -> str:
        """Return ``appraisal`` as a signed EAR."""
        verifier = VerifierId(build=f"undercroft {undercroft.__version__}", developer="undercroft")
        return sign_ear(ear_claims(appraisal, verifier), self.key, self.key_id())
