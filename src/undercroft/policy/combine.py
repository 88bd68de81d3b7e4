"""Putting policies together."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from undercroft.policy.model import (
    Action,
    BootRules,
    FileRules,
    Policy,
    QuoteRules,
    ReferenceRules,
    Requirement,
    ResultRules,
    SecureKernelRules,
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
    if not _alike(p.files.buffers for p in parts):
        yield from (action for _, action in part.files.buffers if action)


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
        BootRules(
            tuple(sorted({index for p in parts for index in p.boot.pcrs})),
            _strictest(p.boot.secure_boot for p in parts),
            _severest(p.boot.unknown for p in parts),
        ),
        FileRules(
            _strictest(p.files.ima for p in parts),
            _severest(action for p in parts for action in _unknown_actions(p, parts)),
            _severest(action for p in parts for action in _violation_actions(p, parts)),
            first.files.violations_at if _alike(p.files.violations_at for p in parts) else (),
            first.files.buffers if _alike(p.files.buffers for p in parts) else (),
            tuple(x for x in first.files.exclude if all(x in p.files.exclude for p in parts)),
            tuple(k for k in first.files.keys if all(k in p.files.keys for p in parts)),
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
    )
