"""The typed policy: what must hold for a machine to be called good.

A policy is a value and is never changed by an appraisal.  It only ever demands: there is no rule
that turns a failed check into a pass.
"""

from __future__ import annotations

import enum
import hashlib
from dataclasses import dataclass, field

import msgspec

from undercroft.base import PCR_COUNT, Grade, HashAlgorithm
from undercroft.formats import cbor
from undercroft.policy.rules import (
    MAX_EXPRESSIONS,
    Action,
    Expression,
    RunningRules,
    SecureBootMode,
    UpdateRules,
)

MAX_SECONDS = 366 * 24 * 3600
"""The longest time a policy may speak of: a year."""


class Requirement(enum.Enum):
    """Whether a layer has to be shown.

    An IMA list that is not required is still appraised if it is in the evidence: what is found
    to be wrong counts.  Secure Boot that is not required is only stated.
    """

    REQUIRED = "required"
    NOT_REQUIRED = "not-required"


@dataclass(frozen=True, slots=True)
class QuoteRules:
    """Which PCR banks must be quoted, and what a quote that leans on SHA-1 is worth."""

    banks: tuple[HashAlgorithm, ...]
    weak: Action = Action.CONTRAINDICATE


@dataclass(frozen=True, slots=True)
class BootRules:
    """Which PCRs must be explained by reference values, and whether Secure Boot must be on.

    ``unknown`` is for a PCR or event that no reference value speaks of; one that differs from
    what is known always contraindicates.

    Where they are given, ``secure_boot_mode`` is the least mode, ``authorities`` are shell
    patterns for the names (subjects) of whatever verified an image, and ``sbat`` are the least
    generations that SbatLevel demands, by component.
    """

    pcrs: tuple[int, ...]
    secure_boot: Requirement
    unknown: Action = Action.CONTRAINDICATE
    secure_boot_mode: SecureBootMode | None = None
    authorities: tuple[str, ...] | None = None
    sbat: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        _check_no_doubles("authority", self.authorities or ())
        _check_no_doubles("component", tuple(name for name, _ in self.sbat))
        if not all(name and generation > 0 for name, generation in self.sbat):
            raise ValueError("SBAT generations are above 0")


@dataclass(frozen=True, slots=True)
class FileRules:
    """Whether an IMA list must be there, and what files without a reference value do.

    ``unknown``: no reference value for the path.  ``violations``: a measurement that IMA itself
    calls invalid (open for writing while it was read, or the reverse).

    ``violations_at`` and ``buffers`` say by path, or by a kernel buffer's event name, what such
    an entry does instead; the first pattern that fits counts, and None states it and no more.
    ``unknown_at`` says the same for files that no reference speaks of; ``elsewhere`` are paths
    where any content is good that a reference knows at some other path (an initramfs is made of
    copies).  ``conffiles`` is what another content does at a path that the package leaves to the
    administrator.
    ``exclude`` are paths that are not judged at all.  ``keys`` are PEM certificates or public
    keys whose signature on a file is as good as a reference value, where there is none.
    A violation's path is the list's claim: what is mild at one path is mild everywhere.
    """

    ima: Requirement
    unknown: Action = Action.CONTRAINDICATE
    violations: Action = Action.CONTRAINDICATE
    violations_at: tuple[tuple[str, Action | None], ...] = ()
    buffers: tuple[tuple[str, Action | None], ...] = ()
    exclude: tuple[str, ...] = ()
    keys: tuple[str, ...] = ()
    unknown_at: tuple[tuple[str, Action | None], ...] = ()
    elsewhere: tuple[str, ...] = ()
    conffiles: Action = Action.CONTRAINDICATE

    def __post_init__(self) -> None:
        tables = {
            "violations-at": self.violations_at,
            "buffers": self.buffers,
            "unknown-at": self.unknown_at,
        }
        for what, table in tables.items():
            _check_no_doubles(f"pattern of {what}", tuple(pattern for pattern, _ in table))
            if not all(pattern for pattern, _ in table):
                raise ValueError("an empty pattern fits nothing")
        if any(pattern[0] != "/" for pattern in (*dict(self.unknown_at), *self.elsewhere)):
            raise ValueError("a path begins with /")
        _check_no_doubles("path of elsewhere", self.elsewhere)
        for pattern in self.exclude:
            # "/*" would leave nothing to judge.
            if len(pattern) < 2 or pattern[0] != "/" or pattern[1] in "*?[":
                raise ValueError(f"an excluded path begins with / and a name: {pattern[:80]!r}")
        _check_no_doubles("excluded path", self.exclude)
        _check_no_doubles("key", self.keys)


@dataclass(frozen=True, slots=True)
class SecureKernelRules:
    """Which facts the secure kernel must have established, and what an undetermined one does.

    ``unknown`` applies to a fact that is missing or whose outcome is UNKNOWN; WARN is refused.
    """

    facts: tuple[str, ...]
    unknown: Action = Action.CONTRAINDICATE


@dataclass(frozen=True, slots=True)
class ReferenceRules:
    """Which grades of reference values affirm, and what resting on another grade does."""

    affirm: tuple[Grade, ...]
    other: Action = Action.CONTRAINDICATE


@dataclass(frozen=True, slots=True)
class ResultRules:
    """For how long a result holds, and how old evidence may be when it is appraised (seconds).

    Both count from the end of what the evidence speaks of, so a verdict never outlives its
    evidence, however often the same evidence is appraised.
    """

    validity_s: int
    max_age_s: int


@dataclass(frozen=True, slots=True)
class Policy:
    """One policy.  :attr:`identifier` names it together with a digest of what it says.

    ``serial`` counts the issues of a signed policy, so that an older one is noticed.  After
    ``expires`` (Unix s, 0 for never) nothing is affirmed by it.
    """

    id: str
    quote: QuoteRules
    boot: BootRules
    files: FileRules
    secure_kernel: SecureKernelRules
    reference: ReferenceRules
    result: ResultRules
    updates: UpdateRules = field(default_factory=UpdateRules)
    running: RunningRules = field(default_factory=RunningRules)
    rules: tuple[Expression, ...] = ()
    serial: int = 0
    expires: int = 0

    def __post_init__(self) -> None:
        if not self.id:
            raise ValueError("a policy needs an id")
        if self.serial < 0 or self.expires < 0:
            raise ValueError("serial and expires count up from 0")
        if len(self.rules) > MAX_EXPRESSIONS:
            raise ValueError(f"more than {MAX_EXPRESSIONS} rules")
        _check_no_doubles("rule", tuple(rule.id for rule in self.rules))
        for index in self.boot.pcrs:
            if not 0 <= index < PCR_COUNT:
                raise ValueError(f"PCR {index} is not one of 0..{PCR_COUNT - 1}")
        if self.secure_kernel.unknown is Action.WARN:
            raise ValueError("an undetermined fact is never just a warning")
        if self.boot.unknown is Action.WARN:
            raise ValueError("a boot event that nobody knows is never just a warning")
        if not 1 <= self.result.validity_s <= MAX_SECONDS:
            raise ValueError(f"validity is 1 to {MAX_SECONDS} seconds")
        if not 1 <= self.result.max_age_s <= MAX_SECONDS:
            raise ValueError(f"the age of evidence is 1 to {MAX_SECONDS} seconds")
        if self.result.validity_s <= self.result.max_age_s:
            raise ValueError(
                "a result that holds no longer than evidence may be old is born expired"
            )
        if self.boot.pcrs and not self.quote.banks:
            raise ValueError("PCRs are demanded, but in no bank")
        _check_no_doubles("PCR bank", self.quote.banks)
        _check_no_doubles("PCR", self.boot.pcrs)
        _check_no_doubles("fact", self.secure_kernel.facts)
        _check_no_doubles("grade", self.reference.affirm)

    @property
    def demands_nothing(self) -> bool:
        """True if nothing has to be shown: no machine passes such a policy."""
        return not (
            self.boot.pcrs
            or self.boot.secure_boot is Requirement.REQUIRED
            or self.files.ima is Requirement.REQUIRED
            or self.secure_kernel.facts
        )

    @property
    def identifier(self) -> str:
        """``<id>;sha256=<hex>``: the same id with other rules is another policy."""
        return f"{self.id};sha256={hashlib.sha256(_canonical(self)).hexdigest()}"


def _check_no_doubles(what: str, values: tuple[object, ...]) -> None:
    if len(set(values)) != len(values):
        raise ValueError(f"a {what} is named twice")


def _canonical(policy: Policy) -> bytes:
    """Encode everything that the policy says; lists that are sets are sorted."""
    return cbor.encode(
        [
            1,
            policy.id,
            [sorted(bank.label for bank in policy.quote.banks), policy.quote.weak.value],
            [
                sorted(policy.boot.pcrs),
                policy.boot.secure_boot.value,
                policy.boot.unknown.value,
            ],
            [
                policy.files.ima.value,
                policy.files.unknown.value,
                policy.files.violations.value,
                *_canonical_exceptions(policy.files),
            ],
            [sorted(policy.secure_kernel.facts), policy.secure_kernel.unknown.value],
            [
                sorted(grade.value for grade in policy.reference.affirm),
                policy.reference.other.value,
            ],
            [policy.result.validity_s, policy.result.max_age_s],
            *_canonical_more(policy),
        ]
    )


def _canonical_more(policy: Policy) -> list[object]:
    """Return what a policy says beyond the layers; nothing, as before there was such a thing."""
    boot, files = policy.boot, policy.files
    said: dict[str, object] = {
        "secure-boot-mode": boot.secure_boot_mode,
        "authorities": boot.authorities,
        "sbat": sorted(boot.sbat),
        "unknown-at": files.unknown_at,
        "elsewhere": sorted(files.elsewhere),
        "conffiles": None if files.conffiles is Action.CONTRAINDICATE else files.conffiles,
        "updates": None if policy.updates == UpdateRules() else policy.updates,
        "running": None if policy.running == RunningRules() else policy.running,
        "rules": policy.rules,
        "serial": policy.serial,
        "expires": policy.expires,
    }
    # An empty list is a rule (nothing is allowed), an empty tuple of rules is none.
    known = {k: v for k, v in said.items() if v or (k == "authorities" and v is not None)}
    return [msgspec.to_builtins(known)] if known else []


def _canonical_exceptions(files: FileRules) -> list[object]:
    """Return what a policy says of single paths; nothing, as before there was such a thing."""
    tables = (files.violations_at, files.buffers)
    said: list[object] = [
        [[pattern, action.value if action else None] for pattern, action in table]
        for table in tables
    ]
    said += [sorted(files.exclude), sorted(files.keys)]
    return said if any(said) else []
