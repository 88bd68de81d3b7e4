"""What a policy demands beyond the layers: each rule looks at findings and adds a judgement.

A rule never takes back what a layer found.  Every judgement says by its details how it came
about: the rule, the findings it looked at, what was expected and found, and what a person might
change.  What a rule needs and no finding shows is undetermined.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from undercroft.appraise.model import Judgement, failed, passed, stated
from undercroft.base import Finding, FormatError, JsonValue, Outcome
from undercroft.formats.ear import TrustClaim
from undercroft.policy import Action, Expression, Policy, RunningRules, SecureBootMode
from undercroft.policy.rules import evaluate, release_numbers, timestamp

SHOWN = 32
_SEVERITY = list(Action)
_WORST = (Outcome.FAIL, Outcome.UNKNOWN, Outcome.PASS)


class Findings:
    """The findings of an appraisal, by id."""

    def __init__(self, judgements: Iterable[Judgement], guest: str, now: int) -> None:
        self.guest, self.now = guest, now
        self._judgements = tuple(judgements)
        self._by_id: dict[str, Finding] = {}
        for judgement in self._judgements:
            finding = judgement.finding
            known = self._by_id.get(finding.id)
            if known is None or _WORST.index(finding.outcome) < _WORST.index(known.outcome):
                self._by_id[finding.id] = finding
        self._context: dict[str, Any] | None = None

    def get(self, name: str) -> Finding | None:
        """Return the worst finding of this id, or None."""
        return self._by_id.get(name)

    @property
    def context(self) -> dict[str, Any]:
        """What an expression sees."""
        if self._context is None:
            self._context = {
                "findings": {name: _seen(finding) for name, finding in self._by_id.items()},
                "every": [{"id": j.finding.id, **_seen(j.finding)} for j in self._judgements],
                "guest": self.guest,
                "now": timestamp(self.now),
            }
        return self._context


def _seen(finding: Finding) -> dict[str, Any]:
    return {
        "outcome": finding.outcome.value,
        "summary": finding.summary,
        "details": dict(finding.details),
    }


@dataclass(frozen=True, slots=True)
class _Ruling:
    """What a rule came to: ``found`` is None if no finding shows it."""

    rule: str
    evidence: str
    expected: JsonValue
    found: JsonValue
    holds: bool
    what: str
    suggest: str
    claim: TrustClaim = TrustClaim.CONFIGURATION


def has_rules(policy: Policy) -> bool:
    """Return whether the policy demands anything that is judged here."""
    boot = policy.boot
    return bool(
        policy.rules
        or policy.expires
        or boot.secure_boot_mode
        or boot.authorities is not None
        or boot.sbat
        or policy.running != RunningRules(otherwise=policy.running.otherwise)
    )


def appraise_rules(
    judgements: Iterable[Judgement], policy: Policy, guest: str, now: int
) -> Iterator[Judgement]:
    """Judge every rule of ``policy`` by ``judgements``, those of all layers."""
    if not has_rules(policy):
        return
    found = Findings(judgements, guest, now)
    if policy.expires:
        yield _expiry(policy, now)
    for ruling in (*_boot_rules(found, policy), *_running_rules(found, policy)):
        action = Action.CONTRAINDICATE
        if ruling.rule.startswith("running."):
            action = policy.running.otherwise
        yield _judged(ruling, action)
    for rule in policy.rules:
        yield _expression(rule, found)


def _finding(ruling: _Ruling, outcome: Outcome, what: str) -> Finding:
    details: dict[str, JsonValue] = {
        "rule": ruling.rule,
        "evidence": ruling.evidence,
        "expected": ruling.expected,
        "found": ruling.found,
    }
    if outcome is not Outcome.PASS:
        details["suggestion"] = ruling.suggest
    return Finding(f"policy.{ruling.rule}", outcome, what, details, "policy")


def _judged(ruling: _Ruling, action: Action) -> Judgement:
    if ruling.found is None:
        what = f"{ruling.rule} is demanded, and no finding {ruling.evidence} shows it"
        worse = max(action, Action.INSUFFICIENT, key=_SEVERITY.index)
        return failed(_finding(ruling, Outcome.UNKNOWN, what), ruling.claim, worse)
    if ruling.holds:
        return passed(_finding(ruling, Outcome.PASS, ruling.what), ruling.claim)
    return failed(_finding(ruling, Outcome.FAIL, ruling.what), ruling.claim, action)


def _expiry(policy: Policy, now: int) -> Judgement:
    until = timestamp(policy.expires).isoformat()
    ruling = _Ruling(
        "expires", "the policy", f"before {until}", timestamp(now).isoformat(),
        now < policy.expires, f"the policy is valid until {until}",
        "take the policy's newest issue, or sign a new one",
    )  # fmt: skip
    if ruling.holds:
        return stated(_finding(ruling, Outcome.PASS, ruling.what))
    what = f"the policy expired at {until}: nothing is affirmed by it"
    return failed(_finding(ruling, Outcome.UNKNOWN, what), None, Action.INSUFFICIENT)


# --- boot ---------------------------------------------------------------------------------------


def _shown(found: Findings, name: str, detail: str) -> JsonValue:
    """Return a detail of a finding, None if that did not pass or does not have it."""
    finding = found.get(name)
    if finding is None or finding.outcome is not Outcome.PASS:
        return None
    return finding.details.get(detail)


def _boot_rules(found: Findings, policy: Policy) -> Iterator[_Ruling]:
    boot = policy.boot
    if boot.secure_boot_mode is not None:
        deployed = _shown(found, "secureboot.mode", "DeployedMode")
        passed_ = (finding := found.get("secureboot.mode")) and finding.outcome is Outcome.PASS
        is_deployed = deployed == 1
        mode = ("deployed" if is_deployed else "user") if passed_ else None
        yield _Ruling(
            "boot.secure-boot-mode", "secureboot.mode", boot.secure_boot_mode.value, mode,
            is_deployed or boot.secure_boot_mode is SecureBootMode.USER,
            f"Secure Boot is in {mode} mode",
            "enter deployed mode in the firmware's settings, or take the rule back",
        )  # fmt: skip
    if boot.authorities is not None:
        names = _strings(_shown(found, "secureboot.authorities", "authorities"))
        yield _allow_list(
            "boot.authorities", "secureboot.authorities", boot.authorities, names,
            "{} verified an image", "allow it in boot.authorities, or remove its key from db",
        )  # fmt: skip
    for component, generation in boot.sbat:
        levels = _shown(found, "secureboot.sbat", "generations")
        level = levels.get(component) if isinstance(levels, Mapping) else None
        yield _Ruling(
            f"boot.sbat.{component}", "secureboot.sbat", generation, level,
            isinstance(level, int) and level >= generation,
            f"SbatLevel demands generation {level} of {component}",
            "update shim and dbx in the guest: SbatLevel comes with them",
        )  # fmt: skip


# --- what runs ----------------------------------------------------------------------------------


def _running_rules(found: Findings, policy: Policy) -> Iterator[_Ruling]:
    running = policy.running
    if running.kernel_minimum:
        release = _shown(found, "kernel.reference", "release")
        holds = isinstance(release, str) and release_numbers(release) >= release_numbers(
            running.kernel_minimum
        )
        yield _Ruling(
            "running.kernel-minimum", "kernel.reference", running.kernel_minimum, release, holds,
            f"the kernel is {release}", "upgrade the guest's kernel and reboot it",
            TrustClaim.EXECUTABLES,
        )  # fmt: skip
    lists: tuple[tuple[str, tuple[str, ...] | None, str, _Names, str, str], ...] = (
        ("modules", running.modules, "kernel.modules.crossview", _modules,
         "module {} is loaded", "allow it in running.modules, or unload it and keep it out"),
        ("notable", running.notable, "kernel.notable", _notable,
         "{}", "allow it in running.notable if you know who does it"),
        ("bpf", running.bpf, "kernel.bpf.watchers", _bpf,
         "BPF program {} watches the kernel", "allow its tag in running.bpf if it is yours"),
        ("devices", running.devices, "launch.vm-descriptor", _devices,
         "the machine has a device {}", "allow it in running.devices, or start without it"),
    )  # fmt: skip
    for name, allowed, evidence, names_of, words, suggest in lists:
        if allowed is not None:
            finding = found.get(evidence)
            names = names_of(finding) if finding is not None else None
            yield _allow_list(f"running.{name}", evidence, allowed, names, words, suggest)


_Names = Callable[[Finding], "list[str] | None"]


def _strings(value: JsonValue) -> list[str] | None:
    if isinstance(value, Mapping):
        return [f"{value[key]}" for key in sorted(value)]
    if isinstance(value, str) or not isinstance(value, Sequence):
        return None
    return [str(one) for one in value]


def _modules(finding: Finding) -> list[str] | None:
    passed_ = finding.outcome is Outcome.PASS
    return _strings(finding.details.get("modules")) if passed_ else None


def _notable(finding: Finding) -> list[str] | None:
    things = finding.details.get("notable")
    if not isinstance(things, list) or finding.outcome is not Outcome.PASS:
        return None
    return [f"{one['kind']}: {one['text']}" for one in things if isinstance(one, Mapping)]


def _bpf(finding: Finding) -> list[str] | None:
    """Return each watching program as one text, which any of its three names may fit."""
    if finding.outcome is Outcome.FAIL:
        return None
    things = finding.details.get("anomalies", [])
    if not isinstance(things, list) or finding.details.get("count", len(things)) != len(things):
        return None  # some were left out
    if finding.outcome is Outcome.UNKNOWN and not things:
        return None
    return [
        "\n".join(f"{key}:{one.get(key, '')}" for key in ("tag", "name", "uid"))
        for one in things
        if isinstance(one, Mapping)
    ]


def answered(fact: Finding, policy: Policy) -> bool:
    """Return whether the policy answers what only a person can tell of an undetermined fact."""
    allowed = policy.running.bpf
    if fact.id != "kernel.bpf.watchers" or allowed is None:
        return False
    names = _bpf(fact)
    return bool(names) and all(_fits(name, allowed) for name in names or ())


def _devices(finding: Finding) -> list[str] | None:
    passed_ = finding.outcome is Outcome.PASS
    return _strings(finding.details.get("devices")) if passed_ else None


def _fits(name: str, patterns: tuple[str, ...]) -> bool:
    parts = name.split("\n")
    return any(fnmatch.fnmatchcase(part, pattern) for part in parts for pattern in patterns)


def _allow_list(
    rule: str,
    evidence: str,
    allowed: tuple[str, ...],
    names: list[str] | None,
    words: str,
    suggest: str,
) -> _Ruling:
    strangers = [name for name in names or () if not _fits(name, allowed)]
    what = f"{len(names or ())} seen, each allowed by {rule}"
    if strangers:
        what = words.format(strangers[0].replace("\n", ", ")) + f", which {rule} does not allow"
        if len(strangers) > 1:
            what += f"; {len(strangers) - 1} more"
    shown: JsonValue = None
    if names is not None:
        shown = [name.replace("\n", ", ") for name in (strangers or names)[:SHOWN]]
    expected: list[JsonValue] = list(allowed)
    return _Ruling(rule, evidence, expected, shown, not strangers, what, suggest)


# --- expressions --------------------------------------------------------------------------------


def _expression(rule: Expression, found: Findings) -> Judgement:
    ruling = _Ruling(
        f"rules.{rule.id}", rule.expect, True, False, False,
        rule.why or f"rule {rule.id} does not hold: {rule.expect}",
        rule.suggest or "see what the findings say, or change the rule",
    )  # fmt: skip
    try:
        if rule.when and not evaluate(rule.when, found.context):
            what = f"rule {rule.id} does not apply: {rule.when}"
            return stated(_finding(ruling, Outcome.PASS, what))
        if evaluate(rule.expect, found.context):
            what = f"rule {rule.id} holds: {rule.expect}"
            return passed(_finding(ruling, Outcome.PASS, what), ruling.claim)
    except FormatError as error:
        what = f"rule {rule.id} cannot be evaluated: {error.reason}"
        worse = max(rule.otherwise, Action.INSUFFICIENT, key=_SEVERITY.index)
        return failed(_finding(ruling, Outcome.UNKNOWN, what), ruling.claim, worse)
    return failed(_finding(ruling, Outcome.FAIL, ruling.what), ruling.claim, rule.otherwise)
