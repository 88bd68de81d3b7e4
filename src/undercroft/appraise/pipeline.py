"""The whole pure pipeline in two steps: ``verify_evidence`` and ``appraise``.

Bytes, keys, policy and ``now`` in; an Appraisal out.  Nothing is read, asked or remembered, so
saved evidence gives the same appraisal again, byte for byte.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from undercroft.appraise.boot import appraise_boot
from undercroft.appraise.files import appraise_files, judge_of
from undercroft.appraise.freshness import appraise_time, expiry
from undercroft.appraise.host import HostRules, appraise_host
from undercroft.appraise.identity import appraise_key, state_freshness, state_quirks
from undercroft.appraise.ima_rules import ImaJudge
from undercroft.appraise.interval import interval_facts
from undercroft.appraise.kernel import appraise_kernel
from undercroft.appraise.launch import appraise_launch
from undercroft.appraise.model import Appraisal, Judgement, Layer, failed
from undercroft.appraise.rules import appraise_rules, has_rules
from undercroft.appraise.secureboot import appraise_secure_boot
from undercroft.appraise.updates import appraise_updates
from undercroft.appraise.verified import VerifiedEvidence, time_of, verify_evidence
from undercroft.base import Finding, Outcome
from undercroft.formats.evidence import Challenge, SecureKernelRecord
from undercroft.policy import Action, Policy
from undercroft.reference.archive import FileArchive
from undercroft.reference.model import ReferenceSet
from undercroft.reference.serialise import encode_reference_set
from undercroft.verify.quote import AcceptedState

__all__ = ["Rulebook", "VerifiedEvidence", "appraise", "judge_of", "verify_evidence"]


@dataclass(frozen=True, slots=True)
class Rulebook:
    """References and policy, compiled once for all guests that are appraised by them.

    ``id`` is a digest over everything that both say: equal ids give equal verdicts.
    """

    references: ReferenceSet
    policy: Policy
    judge: ImaJudge
    policy_id: str
    id: bytes

    @property
    def rules(self) -> Rules:
        """What :func:`assemble` takes."""
        return Rules.of(self.references, self.policy, self.policy_id)

    @classmethod
    def of(
        cls, references: ReferenceSet, policy: Policy, archives: Sequence[FileArchive] = ()
    ) -> Rulebook:
        """Compile.  Takes a second or so for 100,000 files.

        ``archives`` are the tables that ``references`` names.  Raises ValueError for others.
        """
        identifier = policy.identifier
        said = hashlib.sha256(encode_reference_set(references)).digest()
        whole = hashlib.sha256(said + identifier.encode()).digest()
        judge = judge_of(references, policy, archives)
        return cls(references, policy, judge, identifier, whole)


def appraise(
    verified: VerifiedEvidence,
    references: ReferenceSet,
    policy: Policy,
    now: int,
    *,
    judge: ImaJudge | None = None,
    host: HostRules | None = None,
) -> Appraisal:
    """Judge ``verified`` against ``references`` by ``policy`` at ``now`` (Unix s).

    ``judge`` is ``judge_of(references, policy)``, for a caller that keeps it or has tables of
    packaged files.  ``host`` is what the host under the guest is judged by.  Never raises for what
    the evidence says; every deviation is a judgement.
    """
    judge = judge or judge_of(references, policy)
    return assemble(
        Rules.of(references, policy, policy.identifier),
        Said(verified.trust.guest, verified.challenge, verified.quote.accepted_state),
        verified.record,
        now,
        kernel=Layer.of(
            appraise_kernel(
                verified.record, references, policy, more=interval_facts(verified.epochs)
            )
        ),
        key=Layer.of(appraise_key(verified.trust, verified.quote, policy)),
        boot=Layer.of(boot_judgements(verified, references, policy, host)),
        files=Layer.of(appraise_files(verified, judge, policy)),
    )


def boot_judgements(
    verified: VerifiedEvidence,
    references: ReferenceSet,
    policy: Policy,
    host: HostRules | None = None,
) -> tuple[Judgement, ...]:
    """Judge all that cannot change until the machine boots again: log, boot PCRs, Secure Boot."""
    return (
        *appraise_launch(verified.launch, verified.quote, verified.record, references, policy),
        *appraise_host(verified, host),
        *state_quirks(verified.log),
        *appraise_boot(verified, references, policy),
        *appraise_secure_boot(verified.log, policy),
        *_nothing_to_go_by(references, policy),
    )


class Rules(NamedTuple):
    """What a verdict is made by; ``beyond`` says whether something is judged beyond the layers."""

    references: ReferenceSet
    policy: Policy
    policy_id: str
    beyond: bool

    @classmethod
    def of(cls, references: ReferenceSet, policy: Policy, policy_id: str) -> Rules:
        """Put them together, once for many verdicts."""
        return cls(references, policy, policy_id, bool(references.states) or has_rules(policy))


class Said(NamedTuple):
    """Who answered which challenge, and the TPM's counters in the quote."""

    guest: str
    challenge: Challenge
    counters: AcceptedState


def assemble(
    rules: Rules,
    said: Said,
    record: SecureKernelRecord | None,
    now: int,
    *,
    key: Layer,
    boot: Layer,
    files: Layer,
    kernel: Layer,
) -> Appraisal:
    """Judge what changes with every quote, and put all judgements together."""
    references, policy, policy_id, beyond = rules
    guest, challenge, counters = said
    seen = time_of(record, challenge)
    fresh = Layer.of(
        (
            state_freshness(challenge, counters, binds_record=record is not None),
            appraise_time(challenge.issued_at, seen, policy, now),
        )
    )
    layers: tuple[Layer, ...] = (key, fresh, boot, files, kernel)
    if beyond:
        layers = (*layers, _beyond(layers, references, policy, guest, now))
    return Appraisal(
        guest=guest,
        policy_id=policy_id,
        references=references.name,
        nonce=challenge.nonce,
        appraised_at=now,
        expires_at=expiry(seen, policy, now),
        layers=layers,
    )


def _beyond(
    layers: tuple[Layer, ...], references: ReferenceSet, policy: Policy, guest: str, now: int
) -> Layer:
    """Judge what rests on the findings of all layers: updates, and the policy's rules."""
    judgements = [judgement for layer in layers for judgement in layer.judgements]
    updates = tuple(appraise_updates(judgements, references, policy, now))
    rules = appraise_rules((*judgements, *updates), policy, guest, now)
    return Layer.of((*updates, *rules))


def _nothing_to_go_by(references: ReferenceSet, policy: Policy) -> Iterator[Judgement]:
    if policy.demands_nothing:
        why = "the policy demands nothing, so nothing was shown"
        finding = Finding("policy.demands", Outcome.UNKNOWN, why, {"policy": policy.id})
        yield failed(finding, None, Action.INSUFFICIENT)
    if references.is_empty:
        why = "the reference set is empty: there is nothing to compare with"
        finding = Finding("reference.empty", Outcome.UNKNOWN, why, {"references": references.name})
        yield failed(finding, None, Action.INSUFFICIENT)
