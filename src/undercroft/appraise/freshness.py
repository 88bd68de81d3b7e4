"""Does the evidence speak of now?  Times are the secure kernel's, bound to the quote.

The nonce shows that the quote is younger than the challenge.  The times show how old what it
speaks of is now, and a verdict lasts only from there on.
"""

from __future__ import annotations

from undercroft.appraise.model import Judgement, failed, passed
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.policy import Action, Policy

ID = "evidence.time"
MAX_SKEW_S = 5
"""How far the clocks of verifier and secure kernel may differ, in seconds."""

SOURCE = "RFC 9334, 10"


def appraise_time(asked: int, seen: int, policy: Policy, now: int) -> Judgement:
    """Judge the age at ``now`` of evidence that speaks of ``seen``, asked for at ``asked``.

    All in Unix seconds; see :func:`undercroft.appraise.verified.time_of`.
    """
    oldest = policy.result.max_age_s
    details: dict[str, JsonValue] = {
        "challenge-s": asked,
        "evidence-s": seen,
        "now-s": now,
        "max-age-s": oldest,
    }
    if seen < asked - MAX_SKEW_S:
        why = f"the secure kernel's interval ended {asked - seen} s before the challenge"
    elif seen > now + MAX_SKEW_S:
        why = f"the evidence is from {seen - now} s in the future"
    elif now - seen > oldest:
        why = f"the evidence is {now - seen} s old, more than {oldest} s"
    else:
        summary = f"the evidence is {max(0, now - seen)} s old"
        return passed(Finding(ID, Outcome.PASS, summary, details, SOURCE), None)
    return failed(Finding(ID, Outcome.UNKNOWN, why, details, SOURCE), None, Action.INSUFFICIENT)


def expiry(seen: int, policy: Policy, now: int) -> int:
    """Return when a result on evidence of ``seen`` ends, in Unix s: it counts from there."""
    return min(now, seen) + policy.result.validity_s
