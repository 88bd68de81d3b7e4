"""Putting policies together."""

from __future__ import annotations

from collections.abc import Iterable

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


def all_of(policy_id: str, policies: Iterable[Policy]) -> Policy:
    """Return the policy that demands what each of ``policies`` demands.

    Requirements add up, actions and times are the strictest, and a grade affirms only if it does
    in every policy.  Raises ValueError for no policies: nothing demanded is nothing shown.
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
            _severest(p.files.unknown for p in parts),
            _severest(p.files.violations for p in parts),
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
