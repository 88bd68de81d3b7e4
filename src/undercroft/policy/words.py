"""A policy in words, and what it leaves open: for a person who has to decide by it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from undercroft.base import Grade
from undercroft.policy.model import Policy, Requirement
from undercroft.policy.rules import Action, RunningRules, timestamp

_DOES = {
    Action.WARN: "gives a warning",
    Action.INSUFFICIENT: "is not enough to affirm",
    Action.CONTRAINDICATE: "contraindicates",
}
_BOOT = frozenset(range(10))


def _listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values)) or "none"


def in_words(policy: Policy) -> tuple[tuple[str, str], ...]:
    """Return each rule and what it says."""
    return tuple(_rows(policy))


def _rows(policy: Policy) -> Iterator[tuple[str, str]]:
    quote, boot = policy.quote, policy.boot
    if policy.serial:
        yield "serial", f"issue {policy.serial}: an older one is refused where this one was seen"
    if policy.expires:
        yield "expires", f"after {timestamp(policy.expires).isoformat()} nothing is affirmed by it"
    yield "quote.banks", f"PCRs have to be quoted in {_listed(b.label for b in quote.banks)}"
    yield "quote.weak", f"a quote that leans on SHA-1 {_DOES[quote.weak]}"
    yield "boot.pcrs", f"explained by references have to be PCR {_listed(boot.pcrs)}"
    yield "boot.unknown", f"a boot event that no reference speaks of {_DOES[boot.unknown]}"
    required = boot.secure_boot is Requirement.REQUIRED
    yield "boot.secure-boot", "Secure Boot has to be on" if required else "Secure Boot may be off"
    if boot.secure_boot_mode is not None:
        yield "boot.secure-boot-mode", f"{boot.secure_boot_mode.value} mode or stricter"
    if boot.authorities is not None:
        yield "boot.authorities", f"images may be verified by {_listed(boot.authorities)}"
    for component, generation in boot.sbat:
        yield "boot.sbat", f"SbatLevel demands generation {generation} of {component} or above"
    yield from _files(policy)
    facts, unknown = policy.secure_kernel.facts, policy.secure_kernel.unknown
    yield "secure-kernel.facts", f"found by the secure kernel has to be {_listed(facts)}"
    yield "secure-kernel.unknown", f"one of them that is missing or unclear {_DOES[unknown]}"
    grades = _listed(grade.value for grade in policy.reference.affirm)
    yield "reference.affirm", f"good enough are references of grade {grades}"
    yield "reference.other", f"resting on another grade {_DOES[policy.reference.other]}"
    updates = policy.updates
    yield (
        "updates",
        f"a superseded package {_DOES[updates.superseded]} after {updates.superseded_days} days, "
        f"a vulnerable one {_DOES[updates.vulnerable]} after {updates.vulnerable_days}",
    )
    yield from _running(policy.running)
    for rule in policy.rules:
        when = f"where {rule.when}: " if rule.when else ""
        yield f"rules.{rule.id}", f"{when}{rule.expect}; else it {_DOES[rule.otherwise]}"
    yield (
        "result",
        f"holds {policy.result.validity_s} s from the end of what the evidence speaks of, which "
        f"may be {policy.result.max_age_s} s old",
    )


def _files(policy: Policy) -> Iterator[tuple[str, str]]:
    files = policy.files
    required = files.ima is Requirement.REQUIRED
    yield "files.ima", "an IMA list has to be there" if required else "an IMA list may be missing"
    yield "files.unknown", f"a file that no reference speaks of {_DOES[files.unknown]}"
    for pattern, action in files.unknown_at:
        yield "files.unknown-at", f"... at {pattern} {_DOES[action] if action else 'is stated'}"
    yield "files.violations", f"a file written while it is measured {_DOES[files.violations]}"
    for pattern, action in files.violations_at:
        yield "files.violations-at", f"... at {pattern} {_DOES[action] if action else 'is stated'}"
    for pattern, action in files.buffers:
        yield "files.buffers", f"buffer {pattern} {_DOES[action] if action else 'is stated'}"
    if files.exclude:
        yield "files.exclude", f"not judged: {_listed(files.exclude)}"
    if files.elsewhere:
        yield "files.elsewhere", f"copies of known files may be at {_listed(files.elsewhere)}"
    yield "files.conffiles", f"a changed configuration file of a package {_DOES[files.conffiles]}"
    if files.keys:
        yield "files.keys", f"files signed by {len(files.keys)} keys are known"


def _running(running: RunningRules) -> Iterator[tuple[str, str]]:
    if running.kernel_minimum:
        yield "running.kernel-minimum", f"the kernel is {running.kernel_minimum} or above"
    lists: Sequence[tuple[str, tuple[str, ...] | None]] = (
        ("modules", running.modules),
        ("notable", running.notable),
        ("bpf", running.bpf),
        ("devices", running.devices),
    )
    made = False
    for name, allowed in lists:
        if allowed is not None:
            made = True
            yield f"running.{name}", f"allowed: {_listed(allowed)}"
    if made or running.kernel_minimum:
        yield "running.otherwise", f"anything else {_DOES[running.otherwise]}"


def gaps(policy: Policy) -> tuple[str, ...]:
    """Return what the policy does not demand, plainly."""
    return tuple(_gaps(policy))


def _gaps(policy: Policy) -> Iterator[str]:
    boot, files = policy.boot, policy.files
    if policy.demands_nothing:
        yield "everything: no machine is affirmed by a policy that demands nothing"
    if left := sorted(_BOOT - set(boot.pcrs)):
        yield f"PCR {_listed(left)} may hold anything"
    if boot.secure_boot is not Requirement.REQUIRED:
        yield "Secure Boot may be off"
    if files.ima is not Requirement.REQUIRED:
        yield "which files ran need not be shown"
    for pattern, action in (*files.unknown_at, *files.violations_at, *files.buffers):
        if action is None:
            yield f"{pattern}: only stated"
    if files.exclude:
        yield f"files under {_listed(files.exclude)} are not judged"
    if not policy.secure_kernel.facts:
        yield "nobody has to look at the running kernel"
    if Grade.OBSERVED in policy.reference.affirm:
        yield "values learned by observation are as good as derived ones"
    if not policy.running.kernel_minimum and not boot.sbat:
        yield "an old kernel or shim is good while it is known (running.kernel-minimum, boot.sbat)"
