"""Was Secure Boot on, and did it verify what was loaded?

The findings are ``verify.secureboot``'s; the policy decides whether they count.  Where Secure
Boot is not required they are stated only, and where it was off only that is stated: with Secure
Boot off the other findings are wrong by nature.
"""

from __future__ import annotations

from collections.abc import Iterator

from msgspec.structs import replace

from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.base import Finding, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.policy import Action, Policy, Requirement
from undercroft.verify.eventlog import ReplayedLog
from undercroft.verify.secureboot import judge_secure_boot

CLAIM = TrustClaim.CONFIGURATION


def appraise_secure_boot(log: ReplayedLog | None, policy: Policy) -> Iterator[Judgement]:
    """Judge the Secure Boot findings of ``log``."""
    required = policy.boot.secure_boot is Requirement.REQUIRED
    if log is None:
        why = "there is no event log to tell whether Secure Boot was on"
        finding = Finding("secureboot.log", Outcome.UNKNOWN, why)
        yield failed(finding, CLAIM, Action.INSUFFICIENT) if required else stated(finding)
        return
    findings = judge_secure_boot(log)
    if required:
        yield from (_judged(finding, policy) for finding in findings)
        return
    enabled = next(finding for finding in findings if finding.id == "secureboot.enabled")
    if enabled.outcome is Outcome.PASS:
        yield from map(stated, findings)
    else:
        summary = f"{enabled.summary}; it is not required"
        yield stated(replace(enabled, outcome=Outcome.UNKNOWN, summary=summary))


def _judged(finding: Finding, policy: Policy) -> Judgement:
    if finding.outcome is Outcome.PASS:
        return passed(finding, CLAIM)
    if finding.outcome is Outcome.FAIL:
        return failed(finding, CLAIM)
    return failed(finding, CLAIM, policy.boot.unknown)
