"""Appraisal again and again: what cannot have changed since the last time is not done again.

The first evidence of a boot is appraised whole.  After that a guest sends a quote, its record
and the IMA entries that are new.  As long as the TPM was not reset and every boot PCR still has
the value that the first quote proved, what was said about the boot still holds.

Checks of this module:

``steady.boot``      no reset since, and every boot PCR has the value it had
``steady.eventlog``  an event log, if one is sent again, is the one that was appraised
``steady.ima``       an IMA list is there exactly if one was there at first
``steady.rules``     the state was left by an appraisal by the same references and policy
"""

from __future__ import annotations

import hashlib

from undercroft.appraise.files import as_required, no_list
from undercroft.appraise.identity import appraise_key
from undercroft.appraise.ima import BOOT_AGGREGATE, appraise_ima, replay_finding, summary_of
from undercroft.appraise.ima_carried import ImaCarried
from undercroft.appraise.kernel import appraise_kernel
from undercroft.appraise.model import Appraisal, Judgement, Layer, stated
from undercroft.appraise.pipeline import Rulebook, Said, assemble, boot_judgements
from undercroft.appraise.steady_state import SteadyState
from undercroft.appraise.steady_swift import Step, Swift
from undercroft.appraise.verified import (
    bound_record,
    ima_bank,
    trusted_key,
    verify_evidence,
    verify_quote_item,
)
from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import Challenge, Evidence, SecureKernelRecord, Trust
from undercroft.formats.ima import parse_binary
from undercroft.verify.checks import Check
from undercroft.verify.ima import ReplayedIma, replay_ima
from undercroft.verify.quote import AcceptedState, VerifiedQuote

S1_BOOT = Check(
    "S1",
    "steady.boot",
    "the machine was not reset and no boot PCR changed since the evidence that was appraised whole",
    "TPM 2.0 Part 1, 36.4; TCG PC Client Platform TPM Profile 1.05, 4.6.2",
)
S2_EVENTLOG = Check(
    "S2", "steady.eventlog", "an event log that is sent again is the one that was appraised", ""
)
S3_IMA = Check("S3", "steady.ima", "an IMA list is there exactly if one was there at first", "")
S4_RULES = Check(
    "S4", "steady.rules", "the state was left by an appraisal by the same references and policy", ""
)
CHECKS = (S1_BOOT, S2_EVENTLOG, S3_IMA, S4_RULES)

_WHOLE = "send the whole evidence again, and appraise it with first()"


class SteadySession:
    """One guest's appraisals by one rulebook.

    ``state`` is what the last appraisal left: small, with a byte form, so that another process
    can go on from it.  It advances only when evidence was authentic, whatever the verdict.
    """

    def __init__(self, trust: Trust, rules: Rulebook, state: SteadyState | None = None) -> None:
        if state is not None and state.rules_id != rules.id:
            raise S4_RULES.failed(
                "the state is of other references or another policy",
                expected=rules.id.hex(),
                got=state.rules_id.hex(),
                remedy=_WHOLE,
            )
        if trust.host_ak_public:
            raise ValueError("a host layer is appraised with whole evidence, every time")
        self.trust = trust
        self.rules = rules
        self.state = state
        self._ak = trusted_key(trust)
        self._rules = rules.rules
        # What is said without a record is the same every time.
        self._no_record = Layer.of(appraise_kernel(None, rules.references, rules.policy))
        self._key = self._boot = Layer.of(())
        self._swift: Swift | None = None
        self._aggregate: Judgement

    @property
    def ima_offset(self) -> int:
        """Where in the guest's binary IMA list the entries start that are still to be sent."""
        ima = self.state.ima if self.state else None
        return ima.state.offset if ima else 0

    def first(
        self,
        evidence: Evidence,
        challenge: Challenge,
        now: int,
        *,
        last: AcceptedState | None = None,
    ) -> Appraisal:
        """Verify and appraise whole evidence, and start from it.

        ``last`` is the accepted state of earlier evidence, for a guest that booted again.  Raises
        VerificationError or FormatError.
        """
        verified = verify_evidence(evidence, self.trust, challenge, last=last)
        boot = boot_judgements(verified, self.rules.references, self.rules.policy)
        files, carried = self._files(verified.ima, verified.quote, None)
        log = evidence.eventlog
        state = SteadyState(
            rules_id=self.rules.id,
            accepted=verified.quote.accepted_state,
            boot_pcrs=_boot_pcrs(verified.quote, carried),
            eventlog_sha256=b"" if log is None else hashlib.sha256(log).digest(),
            boot=boot,
            ima=carried,
        )
        self._settle(state, evidence, challenge, verified.quote, files)
        return self._assemble(challenge, verified.record, now, files)

    def next(self, evidence: Evidence, challenge: Challenge, now: int) -> Appraisal:
        """Verify and appraise evidence whose IMA list holds only the entries from ``ima_offset``.

        The event log may be left out.  Raises VerificationError or FormatError, and ValueError if
        there was no :meth:`first`.
        """
        state = self.state
        if state is None:
            raise ValueError("there is no state to go on from: first() comes first")
        if self._swift is not None and state.ima is not None:
            step = self._swift.step(evidence, challenge, state.accepted, state.ima)
            if step is not None:
                return self._go_on(step, state, evidence, challenge, now)
        quote = verify_quote_item(evidence, self.trust, self._ak, challenge, state.accepted)
        _check_boot(quote, state)
        if evidence.eventlog is not None:
            _check_log(evidence.eventlog, state)
        replayed = _replay(evidence.ima_list, quote, state.ima)
        record = bound_record(evidence.record, self.trust)
        files, carried = self._files(replayed, quote, state.ima)
        state = _advanced(state, quote.accepted_state, carried)
        self._settle(state, evidence, challenge, quote, files)
        return self._assemble(challenge, record, now, files)

    def _go_on(
        self, step: Step, state: SteadyState, evidence: Evidence, challenge: Challenge, now: int
    ) -> Appraisal:
        """Appraise evidence in which nothing unusual was recognised."""
        record = bound_record(evidence.record, self.trust)
        judge = self.rules.judge
        self.state = state = _advanced(
            state, step.counters, ImaCarried(step.state, judge.id, step.tally)
        )
        files = (
            stated(replay_finding(step.state, step.new)),
            self._aggregate,
            summary_of(step.state.count, judge, step.tally, 0),
        )
        return self._assemble(challenge, record, now, files)

    def _settle(
        self,
        state: SteadyState,
        evidence: Evidence,
        challenge: Challenge,
        quote: VerifiedQuote,
        files: tuple[Judgement, ...],
    ) -> None:
        """Keep ``state`` and what is the same in every quote until the machine boots again."""
        self.state = state
        self._key = Layer.of(appraise_key(self.trust, quote, self.rules.policy))
        self._boot = Layer.of(state.boot)
        self._swift = None
        found = [judgement for judgement in files if judgement.finding.id == BOOT_AGGREGATE]
        if found and found[0].tier is Tier.AFFIRMING:
            self._aggregate = found[0]
            self._swift = Swift.of(
                self.trust, challenge, evidence.quote.attest, quote, state.ima, self.rules.judge
            )

    def _files(
        self, replayed: ReplayedIma | None, quote: VerifiedQuote, carried: ImaCarried | None
    ) -> tuple[tuple[Judgement, ...], ImaCarried | None]:
        policy = self.rules.policy
        if replayed is None:
            return (no_list(policy),), None
        found = appraise_ima(replayed, self.rules.judge, quote.pcrs, carried=carried)
        return tuple(as_required(found.judgements, policy)), found.carried

    def _assemble(
        self,
        challenge: Challenge,
        record: SecureKernelRecord | None,
        now: int,
        files: tuple[Judgement, ...],
    ) -> Appraisal:
        assert self.state is not None  # whoever calls has set it
        said = Said(self.trust.guest, challenge, self.state.accepted)
        kernel = self._no_record
        if record is not None:
            kernel = Layer.of(appraise_kernel(record, self.rules.references, self.rules.policy))
        return assemble(
            self._rules,
            said,
            record,
            now,
            key=self._key,
            boot=self._boot,
            files=Layer.of(files),
            kernel=kernel,
        )


def _advanced(state: SteadyState, counters: AcceptedState, ima: ImaCarried | None) -> SteadyState:
    return SteadyState(
        state.rules_id, counters, state.boot_pcrs, state.eventlog_sha256, state.boot, ima
    )


def _boot_pcrs(quote: VerifiedQuote, carried: ImaCarried | None) -> tuple[PcrBank, ...]:
    """Return the quoted PCRs but those that the IMA list extends."""
    running = {index for index, _ in carried.state.values} if carried else set()
    return tuple(
        PcrBank(bank.algorithm, {i: v for i, v in bank.values.items() if i not in running})
        for bank in quote.pcrs
    )


def _check_boot(quote: VerifiedQuote, state: SteadyState) -> None:
    if quote.resets:
        raise S1_BOOT.failed(
            "the machine booted again",
            expected=f"resetCount {state.accepted.reset_count}",
            got=f"resetCount {quote.reset_count}",
            remedy=_WHOLE,
        )
    quoted = {bank.algorithm: bank.values for bank in quote.pcrs}
    for bank in state.boot_pcrs:
        values = quoted.get(bank.algorithm, {})
        if not bank.values.items() <= values.items():
            index = next(i for i, value in bank.values.items() if values.get(i) != value)
            raise _pcr_changed(bank.algorithm, index, bank.values[index], values.get(index))


def _pcr_changed(bank: HashAlgorithm, index: int, expected: bytes, got: bytes | None) -> Exception:
    return S1_BOOT.failed(
        f"PCR {index} of the {bank} bank is not what it was when the boot was appraised",
        expected=expected.hex(),
        got="not quoted" if got is None else got.hex(),
        remedy=_WHOLE,
    )


def _check_log(log: bytes, state: SteadyState) -> None:
    digest = hashlib.sha256(log).digest()
    if digest != state.eventlog_sha256:
        raise S2_EVENTLOG.failed(
            "another event log than the one that was appraised",
            expected=state.eventlog_sha256.hex() or "none",
            got=digest.hex(),
            remedy=_WHOLE,
        )


def _replay(
    data: bytes | None, quote: VerifiedQuote, carried: ImaCarried | None
) -> ReplayedIma | None:
    if (data is None) is not (carried is None):
        raise S3_IMA.failed(
            "an IMA list came or went since the evidence that was appraised whole",
            expected="no list" if carried is None else "the new entries of the list",
            got="no list" if data is None else "a list",
            remedy=_WHOLE,
        )
    if data is None or carried is None:
        return None
    measurements, algorithm = parse_binary(data), carried.state.algorithm
    same = tuple(bank for bank in quote.pcrs if bank.algorithm is algorithm)
    return replay_ima(
        measurements,
        ima_bank(measurements, same),
        reset_count=quote.reset_count,
        state=carried.state,
    )
