"""What the chain of epochs says of the time before the quote, as a fact like the others."""

from __future__ import annotations

from collections.abc import Sequence

from undercroft.base import Finding, JsonValue, Outcome, VerificationError
from undercroft.formats.evidence.interval import Epoch
from undercroft.verify.interval import IntervalDemand, VerifiedInterval, prove_interval

UNCHANGED = "kernel.unchanged"
RANGES = ("kernel.text", "kernel.rodata", "kernel.ro-after-init", "kernel.page-tables")
CHANNEL = "write-trap:userfaultfd"
DEMAND = IntervalDemand(RANGES, (CHANNEL,), open_ns=1_000_000_000)
"""Full cover without a blind window; a page may be open for a second while it is patched."""
_LISTED = 16


def interval_facts(epochs: Sequence[Epoch] | None) -> tuple[Finding, ...]:
    """Return the fact about the whole time that ``epochs`` (verified) tell of; none without any.

    PASS: code and constants of the kernel did not change from the first epoch's beginning to the
    last one's end, but as the kernel patches itself.  FAIL: something else was written, or tried.
    UNKNOWN: it cannot be proven, and why.
    """
    if not epochs:
        return ()
    t0, t1 = epochs[0].t0, epochs[-1].t1
    details: dict[str, JsonValue] = {
        "t0-ns": t0,
        "t1-ns": t1,
        "session": epochs[0].session.hex(),
        "epochs": len(epochs),
        "ranges": list(RANGES),
    }
    unlawful = [change for epoch in epochs for change in epoch.changes if not change.lawful]
    try:
        proven = prove_interval(epochs, t0, t1, DEMAND)
    except VerificationError as error:
        details["check"] = error.check
        outcome = Outcome.FAIL if unlawful else Outcome.UNKNOWN
        if unlawful:
            details["seen"] = [
                {
                    "time-ns": change.time,
                    "where": change.symbol or f"{change.range} at {change.paddr:#x}",
                    "landed": change.landed,
                    "reason": change.reason,
                }
                for change in unlawful[:_LISTED]
            ]
        return (Finding(UNCHANGED, outcome, f"not proven unchanged: {error}", details),)
    return (Finding(UNCHANGED, Outcome.PASS, _summary(proven), {**details, **_counts(proven)}),)


def _summary(proven: VerifiedInterval) -> str:
    seconds = (proven.t1 - proven.t0) / 1e9
    what = f"the kernel's code and constants were unchanged for {seconds:.3f} s before the quote"
    return f"{what}, but for {len(proven.changes):,} places that it patched lawfully"


def _counts(proven: VerifiedInterval) -> dict[str, JsonValue]:
    return {
        "changes": len(proven.changes),
        "last-modified-ns": dict(proven.last_modified),
        "also-covered": sorted(
            {each.name for epoch in proven.epochs for each in epoch.ranges} - set(RANGES)
        ),
    }
