"""Evidence in, verified evidence out: every authenticity check of the pipeline, in one place.

Checks of this module (those of its parts are in ``verify``):

``evidence.ak``        the evidence says that it was signed with the key that is trusted
``evidence.guest``     the secure kernel's record is about the guest that the key belongs to
``evidence.ima-bank``  a quoted bank has every PCR that the IMA list extends
"""

from __future__ import annotations

import hmac
from dataclasses import dataclass

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.evidence import (
    Challenge,
    Evidence,
    SecureKernelRecord,
    Trust,
    parse_record,
    qualifying_data,
)
from undercroft.formats.evidence.interval import Epoch, parse_chain
from undercroft.formats.ima import ImaList, parse_binary
from undercroft.formats.tpm import PcrSelectionList, parse_public, parse_quote
from undercroft.verify.ak import AttestationKey, verify_ak
from undercroft.verify.checks import Check
from undercroft.verify.deepquote import VerifiedHost, verify_host
from undercroft.verify.epochs import verify_epochs
from undercroft.verify.eventlog import ReplayedLog, verify_eventlog
from undercroft.verify.ima import ReplayedIma, replay_ima
from undercroft.verify.interval import verify_bound_chain
from undercroft.verify.launch import VerifiedLaunch, verify_launch
from undercroft.verify.quote import AcceptedState, VerifiedQuote, verify_quote

V1_AK = Check(
    "V1",
    "evidence.ak",
    "the attestation key that the evidence names is the one that is trusted for this guest",
    "RFC 9334, 7.4 and 12.1",
)
V2_GUEST = Check(
    "V2",
    "evidence.guest",
    "the secure kernel's record is about the guest that the key belongs to",
    "draft-ietf-rats-msg-wrap-23, 8.2: parts of a collection are bound to each other",
)
V3_IMA_BANK = Check(
    "V3",
    "evidence.ima-bank",
    "one quoted bank covers every PCR that the IMA list extends",
    "Linux security/integrity/ima/ima_queue.c: every bank is extended",
)
CHECKS = (V1_AK, V2_GUEST, V3_IMA_BANK)

_BANKS_BY_STRENGTH = (
    HashAlgorithm.SHA512,
    HashAlgorithm.SHA384,
    HashAlgorithm.SHA256,
    HashAlgorithm.SHA3_512,
    HashAlgorithm.SHA3_384,
    HashAlgorithm.SHA3_256,
    HashAlgorithm.SM3_256,
    HashAlgorithm.SHA1,
)


@dataclass(frozen=True, slots=True)
class VerifiedEvidence:
    """Evidence that is authentic, fresh and whole; whether it is acceptable is not said yet.

    ``log``, ``ima``, ``record``, ``launch``, ``host`` and ``epochs`` are None where there is no
    such part.
    """

    trust: Trust
    challenge: Challenge
    quote: VerifiedQuote
    log: ReplayedLog | None
    ima: ReplayedIma | None
    record: SecureKernelRecord | None
    launch: VerifiedLaunch | None
    host: VerifiedHost | None
    epochs: tuple[Epoch, ...] | None = None
    host_evidence: VerifiedEvidence | None = None
    """The host's own boot log and IMA list, replayed to its quote, where there is a host layer."""


def time_of(record: SecureKernelRecord | None, challenge: Challenge) -> int:
    """Return the end of what evidence speaks of, in Unix seconds.

    The secure kernel's t1; without a record, when the challenge was issued: the quote is younger
    than that.
    """
    return challenge.issued_at if record is None else record.t1 // 1_000_000_000


def verify_evidence(
    evidence: Evidence,
    trust: Trust,
    challenge: Challenge,
    *,
    last: AcceptedState | None = None,
) -> VerifiedEvidence:
    """Verify ``evidence`` as the answer to ``challenge`` of the guest that ``trust`` knows.

    The quote is signed by the trusted key, carries nonce and record in its qualifying data,
    covers exactly the selected PCRs with the values sent, and is no step back behind ``last``
    (the accepted state of earlier evidence); event log and IMA list replay to the quoted PCRs.
    The chain of epochs is whole, and ends with the one that the record names and PCR 19 has.

    Raises VerificationError (its ``check`` says which check) or FormatError.
    """
    quote = verify_quote_item(evidence, trust, trusted_key(trust), challenge, last)
    launch = None if evidence.launch_log is None else verify_launch(evidence.launch_log, quote.pcrs)
    record = bound_record(evidence.record, trust)
    host = verify_host(evidence, launch, record, trust, challenge)
    return VerifiedEvidence(
        trust,
        challenge,
        quote,
        None if evidence.eventlog is None else _verify_log(evidence.eventlog, quote),
        None if evidence.ima_list is None else _verify_ima(evidence.ima_list, quote),
        record,
        launch,
        host,
        None if evidence.epochs is None else _verify_epochs(evidence.epochs, record, launch),
        None if host is None else _verify_host_logs(host, trust, challenge),
    )


def _verify_host_logs(host: VerifiedHost, trust: Trust, challenge: Challenge) -> VerifiedEvidence:
    """Replay the host's own logs to its quote, as a guest's; checks get ``host.`` before them."""
    try:
        return VerifiedEvidence(
            trust,
            challenge,
            host.quote,
            None if host.eventlog is None else _verify_log(host.eventlog, host.quote),
            None if host.ima_list is None else _verify_ima(host.ima_list, host.quote),
            None,
            None,
            None,
        )
    except VerificationError as error:
        raise VerificationError(
            f"host.{error.check}",
            error.what,
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error


def trusted_key(trust: Trust) -> AttestationKey:
    """Load the key that ``trust`` names.  Raises FormatError or VerificationError."""
    return verify_ak(parse_public(trust.ak_public))


def verify_quote_item(
    evidence: Evidence,
    trust: Trust,
    ak: AttestationKey,
    challenge: Challenge,
    last: AcceptedState | None,
) -> VerifiedQuote:
    """Verify the quote of ``evidence``; ``ak`` is ``trusted_key(trust)``."""
    item = evidence.quote
    if not hmac.compare_digest(item.claimed_ak_public, trust.ak_public):
        raise V1_AK.failed(
            "the evidence is of another attestation key",
            expected=_short(trust.ak_public),
            got=_short(item.claimed_ak_public),
            remedy="if this guest has a new vTPM, enrol it again",
        )
    bound = qualifying_data(
        challenge.nonce,
        record=evidence.record,
        eventlog=evidence.eventlog,
        ima_list=evidence.ima_list,
        launch_log=evidence.launch_log,
    )
    quote = parse_quote(item.attest, item.signature, item.claimed_pcrs)
    try:
        return verify_quote(quote, ak, bound, PcrSelectionList.of(challenge.selection), last)
    except VerificationError as error:
        if error.check != "quote.nonce":
            raise
        raise VerificationError(
            error.check,
            "the quote does not bind this nonce with this record and these logs: it "
            "answers another challenge, or a part was changed",
            expected=error.expected,
            got=error.got,
            remedy=error.remedy,
        ) from error


def _short(public: bytes) -> str:
    return f"TPMT_PUBLIC with SHA-256 {HashAlgorithm.SHA256.hash(public).hex()[:16]}…"


def _verify_log(data: bytes, quote: VerifiedQuote) -> ReplayedLog:
    return verify_eventlog(parse_eventlog(data), quote.pcrs)


def _verify_epochs(
    data: bytes, record: SecureKernelRecord | None, launch: VerifiedLaunch | None
) -> tuple[Epoch, ...]:
    epochs = verify_bound_chain(data, record)
    if launch is not None:
        verify_epochs(launch.runs, parse_chain(data))
    return epochs


def ima_bank(measurements: ImaList, banks: tuple[PcrBank, ...]) -> PcrBank:
    """Return the strongest of the quoted ``banks`` that has every PCR of the list.

    Raises VerificationError if there is none.
    """
    needed = set(measurements.pcrs)
    fitting = [bank for bank in banks if needed <= bank.values.keys()]
    if not fitting:
        raise V3_IMA_BANK.failed(
            "no quoted bank covers the PCRs of the IMA list",
            expected=f"PCR {sorted(needed)}",
            got="; ".join(f"{b.algorithm} PCR {[*b.values]}" for b in banks),
            remedy="quote the IMA PCR too",
        )
    return min(fitting, key=lambda bank: _BANKS_BY_STRENGTH.index(bank.algorithm))


def _verify_ima(data: bytes, quote: VerifiedQuote) -> ReplayedIma:
    measurements = parse_binary(data)
    return replay_ima(
        measurements, ima_bank(measurements, quote.pcrs), reset_count=quote.reset_count
    )


def bound_record(data: bytes | None, trust: Trust) -> SecureKernelRecord | None:
    """Parse a record that a verified quote binds, and check whom it is about."""
    if data is None:
        return None
    record = parse_record(data)
    if record.guest != trust.guest:
        raise V2_GUEST.failed(
            "the record is about another guest", expected=trust.guest, got=record.guest
        )
    return record
