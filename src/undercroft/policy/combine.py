"""Putting policies together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from undercroft.policy.model import (
    BootRules,
    FileRules,
    Policy,
    QuoteRules,
    ReferenceRules,
    Requirement,
    ResultRules,
    SecureKernelRules,
)
from undercroft.policy.rules import (
    Action,
    Expression,
    RunningRules,
    SecureBootMode,
    UpdateRules,
    release_numbers,
)

_SEVERITY = {action: rank for rank, action in enumerate(Action)}


def _severest(actions: Iterable[Action]) -> Action:
    return max(actions, key=_SEVERITY.__getitem__)


def _strictest(requirements: Iterable[Requirement]) -> Requirement:
    required = Requirement.REQUIRED in set(requirements)
    return Requirement.REQUIRED if required else Requirement.NOT_REQUIRED


def _alike(tables: Iterable[object]) -> bool:
    return len(set(tables)) == 1


def _violation_actions(part: Policy, parts: tuple[Policy, ...]) -> Iterator[Action]:
    """Yield what a violation may do under ``part``: exceptions fall unless all make the same."""
    yield part.files.violations
    if not _alike(p.files.violations_at for p in parts):
        yield from (action for _, action in part.files.violations_at if action)


def _unknown_actions(part: Policy, parts: tuple[Policy, ...]) -> Iterator[Action]:
    """Yield what a file or buffer that nobody knows may do under ``part``."""
    yield part.files.unknown
    for tables in ([p.files.buffers for p in parts], [p.files.unknown_at for p in parts]):
        if not _alike(tables):
            own = tables[parts.index(part)]
            yield from (action for _, action in own if action)


def _allowed(lists: Iterable[tuple[str, ...] | None]) -> tuple[str, ...] | None:
    """Return what every allow-list allows; None, no rule, allows everything."""
    made = [one for one in lists if one is not None]
    if not made:
        return None
    return tuple(pattern for pattern in made[0] if all(pattern in one for one in made))


def _boot(parts: tuple[Policy, ...]) -> BootRules:
    modes = {p.boot.secure_boot_mode for p in parts}
    generations: dict[str, int] = {}
    for component, generation in (row for p in parts for row in p.boot.sbat):
        generations[component] = max(generation, generations.get(component, 0))
    return BootRules(
        tuple(sorted({index for p in parts for index in p.boot.pcrs})),
        _strictest(p.boot.secure_boot for p in parts),
        _severest(p.boot.unknown for p in parts),
        next((mode for mode in reversed(SecureBootMode) if mode in modes), None),
        _allowed(p.boot.authorities for p in parts),
        tuple(generations.items()),
    )


def _updates(parts: tuple[Policy, ...]) -> UpdateRules:
    rules = [p.updates for p in parts]
    return UpdateRules(
        min(rule.superseded_days for rule in rules),
        _severest(rule.superseded for rule in rules),
        min(rule.vulnerable_days for rule in rules),
        _severest(rule.vulnerable for rule in rules),
    )


def _running(parts: tuple[Policy, ...]) -> RunningRules:
    rules = [p.running for p in parts]
    return RunningRules(
        max((rule.kernel_minimum for rule in rules), key=release_numbers),
        _allowed(rule.modules for rule in rules),
        _allowed(rule.notable for rule in rules),
        _allowed(rule.bpf for rule in rules),
        _allowed(rule.devices for rule in rules),
        _severest(rule.otherwise for rule in rules),
    )


def _rules(parts: tuple[Policy, ...]) -> tuple[Expression, ...]:
    """Return the rules of all; ValueError where two different ones have one id."""
    return tuple(dict.fromkeys(rule for p in parts for rule in p.rules))


def all_of(policy_id: str, policies: Iterable[Policy]) -> Policy:
    """Return the policy that demands what each of ``policies`` demands.

    Requirements add up, actions and times are the strictest, and a grade affirms (a key signs, a
    path is excluded) only if it does in every policy.  Raises ValueError for no policies: nothing
    demanded is nothing shown.
    """
    parts = tuple(policies)
    if not parts:
        raise ValueError("all_of() of no policies demands nothing, so it can show nothing")
    first = parts[0]
    return Policy(
        policy_id,
        QuoteRules(
            tuple(dict.fromkeys(bank for p in parts for bank in p.quote.banks)),
            _severest(p.quote.weak for p in parts),
        ),
        _boot(parts),
        FileRules(
            _strictest(p.files.ima for p in parts),
            _severest(action for p in parts for action in _unknown_actions(p, parts)),
            _severest(action for p in parts for action in _violation_actions(p, parts)),
            first.files.violations_at if _alike(p.files.violations_at for p in parts) else (),
            first.files.buffers if _alike(p.files.buffers for p in parts) else (),
            tuple(x for x in first.files.exclude if all(x in p.files.exclude for p in parts)),
            tuple(k for k in first.files.keys if all(k in p.files.keys for p in parts)),
            first.files.unknown_at if _alike(p.files.unknown_at for p in parts) else (),
            tuple(x for x in first.files.elsewhere if all(x in p.files.elsewhere for p in parts)),
            _severest(p.files.conffiles for p in parts),
        ),
        SecureKernelRules(
            tuple(dict.fromkeys(fact for p in parts for fact in p.secure_kernel.facts)),
            _severest(p.secure_kernel.unknown for p in parts),
        ),
        ReferenceRules(
            tuple(g for g in first.reference.affirm if all(g in p.reference.affirm for p in parts)),
            _severest(p.reference.other for p in parts),
        ),
        ResultRules(
            min(p.result.validity_s for p in parts), min(p.result.max_age_s for p in parts)
        ),
        _updates(parts),
        _running(parts),
        _rules(parts),
        max(p.serial for p in parts),
        min((p.expires for p in parts if p.expires), default=0),
    )
