"""Who answered, and how much the answer's cryptography is worth."""

from __future__ import annotations

from collections.abc import Iterator

from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.appraise.verified import VerifiedEvidence
from undercroft.base import Finding, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.formats.evidence import HowTrusted
from undercroft.policy import Policy

CLAIM = TrustClaim.INSTANCE_IDENTITY

_WHY_TRUSTED = {
    HowTrusted.MADE_HERE: "we made the vTPM and the key ourselves, beside the guest",
    HowTrusted.ACTIVATED: "credential activation tied the key to a certified endorsement key",
    HowTrusted.PINNED: "the operator named the key",
}


def appraise_identity(verified: VerifiedEvidence, policy: Policy) -> Iterator[Judgement]:
    """State what verification has shown, and judge what is weak about it."""
    quote, trust = verified.quote, verified.trust
    yield passed(
        Finding(
            "quote.authentic",
            Outcome.PASS,
            f"{trust.guest}'s attestation key signed the quote; {_WHY_TRUSTED[trust.how]}",
            {"ak-name": quote.ak_name.hex(), "scheme": str(quote.ak.scheme)},
            f"trust: {trust.how.value}",
        ),
        CLAIM,
    )
    yield passed(
        Finding(
            "quote.fresh",
            Outcome.PASS,
            "the quote answers this challenge and binds the secure kernel's record"
            if verified.record
            else "the quote answers this challenge",
            {
                "nonce": str(verified.challenge.nonce),
                "reset-count": quote.reset_count,
                "restart-count": quote.restart_count,
                "clock-ms": quote.clock,
            },
            "RFC 9334, 10.2",
        ),
        CLAIM,
    )
    if quote.weaknesses:
        names = [weakness.value for weakness in quote.weaknesses]
        finding = Finding(
            "quote.strength",
            Outcome.FAIL,
            f"the quote leans on what is weak: {', '.join(names)}",
            {"weaknesses": list(names)},
            "NIST SP 800-131A Rev. 2, 9",
        )
        yield failed(finding, CLAIM, policy.quote.weak)
    yield from _quirks(verified)


def _quirks(verified: VerifiedEvidence) -> Iterator[Judgement]:
    if verified.log is None:
        return
    for fired in verified.log.quirks:
        yield stated(
            Finding(
                "eventlog.quirk",
                Outcome.PASS,
                fired.quirk.summary,
                {"quirk": fired.quirk.id, "events": list(fired.events)},
                fired.quirk.source,
            )
        )
