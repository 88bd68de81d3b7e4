"""Why a judgement says what it says: the rule that decided, and what a person might change.

A table by finding id, from the most particular to the least.  Evidence, what was expected and
what was found stand in the finding itself; here they are put into one form for every kind.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.appraise.model import Judgement
from undercroft.base import JsonValue, Outcome

_DERIVE = "derive the references again from today's packages (undercroft reference packages update)"
_LEARN = "or, if this machine is trusted now, undercroft reference learn (a lower grade)"

_OBSERVE = f"{_DERIVE}, {_LEARN}"

RULES: tuple[tuple[str, str, str], ...] = (
    # id (a prefix), the rule in the policy, what a person might do
    ("quote.strength", "quote.weak", "quote the sha256 bank with a key that signs over SHA-256"),
    ("evidence.time", "result.max-age-s", "collect evidence again, and appraise it at once"),
    ("boot.pcr", "boot.pcrs", f"see undercroft reference diff; if the change was meant, {_DERIVE}"),
    ("secureboot", "boot.secure-boot", "switch Secure Boot on in the guest's firmware"),
    ("ima.list", "files.ima", "boot the guest with an IMA policy (ima_policy=, /etc/ima)"),
    (
        "ima.violation",
        "files.violations-at",
        "name the path in files.violations-at if it is written to while it is read, as logs are",
    ),
    ("ima.buffer", "files.buffers", "name the buffer in files.buffers if it is expected"),
    ("ima.kexec", "files.unknown", "boot through the firmware, so that the log shows the kernel"),
    ("ima.signature", "files.keys", "sign the file again, or put the right key into files.keys"),
    (
        "ima.file",
        "files.unknown",
        "add its package to the set (undercroft reference packages build), name the path in "
        "files.unknown-at, " + _LEARN,
    ),
    ("ima.files", "files", "see the single files"),
    ("ima", "files", _OBSERVE),
    ("updates", "updates", "upgrade the guest, reboot it, and update the references"),
    ("kernel.reference", "secure-kernel.facts", f"is this kernel meant to run? {_OBSERVE}"),
    (
        "kernel.bpf.watchers",
        "running.bpf",
        "name the program's tag in running.bpf if you know whose it is",
    ),
    (
        "launch.records",
        "(always)",
        "find out what happened; it stays in PCR 19 until the machine starts again",
    ),
    ("launch", "reference", "start the guest with undercroft guest run, of today's version"),
    ("descriptor", "reference", "start the guest again with the devices that it is meant to have"),
    ("host", "trust", "enrol the host's TPM again if it was changed"),
    ("policy.demands", "(the policy)", "demand something: start from the policy called default"),
    ("reference.empty", "(the references)", _DERIVE),
    ("kernel", "secure-kernel.facts", "treat the guest as compromised until it is understood"),
    ("cpu", "secure-kernel.facts", "treat the guest as compromised until it is understood"),
    ("user", "secure-kernel.facts", "see which process it is"),
)
CONTRADICTING = frozenset({"ima.file", "ima.signature", "kernel.reference"})
"""Findings (and those on PCRs) that FAIL only where something else is known to be right: no policy
makes that milder."""

ALWAYS = "(always)"
"""The rule of what no policy makes milder: another value than the known one, a false signature."""


@dataclass(frozen=True, slots=True)
class Explanation:
    """One judgement in the form of all: rule, evidence, expected, found, a suggested change."""

    rule: str
    evidence: str
    expected: JsonValue
    found: JsonValue
    suggestion: str

    def as_json(self) -> dict[str, JsonValue]:
        """Return it as a JSON object."""
        return {
            "rule": self.rule,
            "evidence": self.evidence,
            "expected": self.expected,
            "found": self.found,
            "suggestion": self.suggestion,
        }


def explain(judgement: Judgement) -> Explanation:
    """Return why ``judgement`` came about, and what a person might change so that it does not."""
    finding = judgement.finding
    details = finding.details
    if "rule" in details and "suggestion" in details:  # the policy's own rules say it themselves
        return Explanation(
            str(details["rule"]),
            str(details["evidence"]),
            details["expected"],
            details["found"],
            str(details["suggestion"]),
        )
    rule, suggestion = next(
        ((rule, what) for name, rule, what in RULES if _is_under(finding.id, name)),
        (ALWAYS, "see what the finding says"),
    )
    graded = "grades" in details and finding.outcome is Outcome.PASS
    if graded:
        rule, suggestion = "reference.affirm", f"allow the grade in reference.affirm, or {_DERIVE}"
    elif finding.outcome is Outcome.FAIL and (
        finding.id in CONTRADICTING or finding.id.startswith("boot.pcr.")
    ):
        rule = f"{ALWAYS}: it contradicts what is known"
    found = next((details[key] for key in ("found", "digest", "path") if key in details), None)
    expected = details.get("expected", _expected(finding.outcome))
    return Explanation(rule, finding.source or finding.id, expected, found, suggestion)


def _expected(outcome: Outcome) -> JsonValue:
    return None if outcome is Outcome.PASS else "a finding that passes"


def _is_under(finding: str, name: str) -> bool:
    return finding == name or finding.startswith(name + ".")
