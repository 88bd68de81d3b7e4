"""What the appraisal of an IMA list is done with: rules, references, keys, compiled once."""

from __future__ import annotations

import fnmatch
import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from undercroft.policy import Action, Policy, ReferenceRules
from undercroft.reference.layers import KnownFiles
from undercroft.verify.ima_signature import ImaKeyring, load_keyring

_NAME = "the policy's"

Pattern = str
"""A shell pattern over a whole path or event name: ``*`` also takes ``/``."""


@dataclass(frozen=True, slots=True)
class ImaRules:
    """What each kind of deviation does.  None in a table means: stated, and nothing else.

    ``unknown``: a path or content that no reference speaks of, an unknown template, a kernel
    buffer that no rule speaks of.  A known path with another content always contraindicates.

    ``exclude``: paths that are not judged at all.  ``violations`` and ``buffers``: what a
    violation at a path, or a buffer of an event name, does; the first pattern that fits counts.
    A violation's path is claimed by the list, not vouched for by the quote: whoever rules the
    guest can give a violation any path, so an action milder than ``violation`` for some path is
    an action milder for all.

    ``unknown_at``: what an unknown file does at a path, in place of ``unknown``.  ``elsewhere``:
    paths where a content is good that is known at any other path.  ``conffiles``: what another
    content does where the package leaves the content to the administrator.

    ``known_buffers``: SHA-256 of the content of buffers (keys, kexec command lines) that are
    known to be good.  ``kexec``: another kernel may have been started since the boot that the
    event log shows.  ``keyring``: keys whose signature is as good as a reference, for paths that
    have none.  ``max_findings``: how many deviations are told one by one.
    """

    reference: ReferenceRules
    unknown: Action = Action.CONTRAINDICATE
    violation: Action = Action.CONTRAINDICATE
    kexec: Action = Action.INSUFFICIENT
    exclude: tuple[Pattern, ...] = ()
    violations: tuple[tuple[Pattern, Action | None], ...] = ()
    buffers: tuple[tuple[Pattern, Action | None], ...] = ()
    known_buffers: frozenset[bytes] = frozenset()
    keyring: ImaKeyring = field(default_factory=lambda: ImaKeyring(()))
    max_findings: int = 100
    unknown_at: tuple[tuple[Pattern, Action | None], ...] = ()
    elsewhere: tuple[Pattern, ...] = ()
    conffiles: Action = Action.CONTRAINDICATE


def rules_of(policy: Policy) -> ImaRules:
    """Return the rules that a policy states.  Raises FormatError for a key that cannot be read."""
    files = policy.files
    return ImaRules(
        policy.reference,
        files.unknown,
        files.violations,
        exclude=files.exclude,
        violations=files.violations_at,
        buffers=files.buffers,
        keyring=load_keyring(
            (f"{_NAME} key {number}", key.encode()) for number, key in enumerate(files.keys, 1)
        ),
        unknown_at=files.unknown_at,
        elsewhere=files.elsewhere,
        conffiles=files.conffiles,
    )


class ImaJudge:
    """Rules and references, made ready for lists.  Never changes; make one and keep it.

    ``id`` names what decides: the same list judged by judges of one id has one verdict.
    """

    __slots__ = (
        "_buffers",
        "_elsewhere",
        "_excluded",
        "_unknown",
        "_violations",
        "affirmed",
        "id",
        "references",
        "rules",
    )

    def __init__(self, rules: ImaRules, references: KnownFiles) -> None:
        self.rules = rules
        self.references = references
        self._excluded = _compiled(rules.exclude)
        self._violations = [(_compiled([p]), action) for p, action in rules.violations]
        self._buffers = [(_compiled([p]), action) for p, action in rules.buffers]
        self._unknown = [(_compiled([p]), action) for p, action in rules.unknown_at]
        self._elsewhere = _compiled(rules.elsewhere)
        self.affirmed = frozenset(grade.value for grade in rules.reference.affirm)
        self.id = _identifier(rules, references)

    def excludes(self, path: bytes) -> bool:
        """Return whether the path is not to be judged."""
        return bool(self.rules.exclude) and _fits(self._excluded, path)

    def unknown_action(self, path: bytes) -> Action | None:
        """Return what a file does at this path that no reference speaks of."""
        return next(
            (action for pattern, action in self._unknown if _fits(pattern, path)),
            self.rules.unknown,
        )

    def takes_copies(self, path: bytes) -> bool:
        """Return whether content that is known elsewhere is good at this path."""
        return bool(self.rules.elsewhere) and _fits(self._elsewhere, path)

    def violation_action(self, claimed_path: bytes) -> Action | None:
        """Return what a violation that claims this path does."""
        return next(
            (action for pattern, action in self._violations if _fits(pattern, claimed_path)),
            self.rules.violation,
        )

    def buffer_action(self, event: bytes) -> Action | None:
        """Return what a buffer of this event name does that is not known to be good."""
        return next(
            (action for pattern, action in self._buffers if _fits(pattern, event)),
            self.rules.unknown,
        )


def _compiled(patterns: Iterable[Pattern]) -> re.Pattern[str]:
    # Latin-1 on both sides: every byte is one character, so any path can be matched.
    texts = (p.encode("utf-8", "surrogateescape").decode("latin-1") for p in patterns)
    return re.compile("|".join(map(fnmatch.translate, texts)))


def _fits(pattern: re.Pattern[str], name: bytes) -> bool:
    return pattern.match(name.decode("latin-1")) is not None


def _identifier(rules: ImaRules, references: KnownFiles) -> bytes:
    said = (
        [action.value for action in (rules.unknown, rules.violation, rules.kexec)],
        [grade.value for grade in rules.reference.affirm],
        rules.reference.other.value,
        rules.exclude,
        [(p, a and a.value) for p, a in rules.violations],
        [(p, a and a.value) for p, a in rules.buffers],
        sorted(rules.known_buffers),
        sorted(key.encoded for key in rules.keyring.keys),
        [(p, a and a.value) for p, a in rules.unknown_at],
        rules.elsewhere,
        rules.conffiles.value,
    )
    return hashlib.sha256(repr(said).encode() + references.content_id).digest()
