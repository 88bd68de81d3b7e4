"""Who answered, and how much the answer's cryptography is worth."""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.base import Finding, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.formats.evidence import Challenge, HowTrusted, Trust
from undercroft.policy import Policy
from undercroft.verify.eventlog import ReplayedLog
from undercroft.verify.quote import AcceptedState, VerifiedQuote

CLAIM = TrustClaim.INSTANCE_IDENTITY

_WHY_TRUSTED = {
    HowTrusted.MADE_HERE: "we made the vTPM and the key ourselves, beside the guest",
    HowTrusted.ACTIVATED: "credential activation tied the key to a certified endorsement key",
    HowTrusted.PINNED: "the operator named the key",
}


def appraise_key(trust: Trust, quote: VerifiedQuote, policy: Policy) -> tuple[Judgement, ...]:
    """Judge who signs: the same for every quote of one key over the same banks."""
    authentic = passed(
        Finding(
            "quote.authentic",
            Outcome.PASS,
            f"{trust.guest}'s attestation key signed the quote; {_WHY_TRUSTED[trust.how]}",
            {"ak-name": quote.ak_name.hex(), "scheme": str(quote.ak.scheme)},
            f"trust: {trust.how.value}",
        ),
        CLAIM,
    )
    if not quote.weaknesses:
        return (authentic,)
    names = [weakness.value for weakness in quote.weaknesses]
    finding = Finding(
        "quote.strength",
        Outcome.FAIL,
        f"the quote leans on what is weak: {', '.join(names)}",
        {"weaknesses": list(names)},
        "NIST SP 800-131A Rev. 2, 9",
    )
    return authentic, failed(finding, CLAIM, policy.quote.weak)


def state_freshness(
    challenge: Challenge, counters: AcceptedState, *, binds_record: bool
) -> Judgement:
    """State what the quote answers and binds, and the TPM's ``counters`` in it."""
    what = "the quote answers this challenge"
    return passed(
        Finding(
            "quote.fresh",
            Outcome.PASS,
            f"{what} and binds the secure kernel's record" if binds_record else what,
            {
                "nonce": str(challenge.nonce),
                "reset-count": counters.reset_count,
                "restart-count": counters.restart_count,
                "clock-ms": counters.clock,
            },
            "RFC 9334, 10.2",
        ),
        CLAIM,
    )


def state_quirks(log: ReplayedLog | None) -> Iterator[Judgement]:
    """State where the event log leaves the specification and is believed all the same."""
    if log is None:
        return
    for fired in log.quirks:
        yield stated(
            Finding(
                "eventlog.quirk",
                Outcome.PASS,
                fired.quirk.summary,
                {"quirk": fired.quirk.id, "events": list(fired.events)},
                fired.quirk.source,
            )
        )
