"""Whether a package's version is the one of today: current, superseded, known vulnerable.

This changes every day while packages stay what they are, so it is kept apart from the values: a
:class:`PackageState` for each version that is not current.  Where files are counted by what
explains them, a :class:`Label` names grade and state in one text.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from undercroft.base import Grade
from undercroft.reference.model import PackageState, Provenance


class Label(msgspec.Struct, frozen=True, array_like=True):
    """What explains a file: a grade, and where it matters the package's version and state.

    ``package`` is empty for a package of which one version is known, and it is current.
    ``superseded`` (Unix s) is 0 for a current version.
    """

    grade: Grade
    package: str = ""
    version: str = ""
    superseded: int = 0
    successor: str = ""
    advisories: tuple[str, ...] = ()

    @property
    def is_current(self) -> bool:
        """True if nothing newer is known and nothing is known against it."""
        return not self.superseded and not self.advisories

    @property
    def text(self) -> str:
        """The label in one line; that of a plain grade is the grade's name."""
        if not self.package:
            return self.grade.value
        return msgspec.json.encode(self).decode()


def parse_label(text: str) -> Label:
    """Read what :attr:`Label.text` wrote.  Raises ValueError."""
    if not text.startswith("["):
        return Label(Grade(text))
    return msgspec.json.decode(text, type=Label)


def grade_name(text: str) -> str:
    """Return the name of the grade in a label's text."""
    return parse_label(text).grade.value if text.startswith("[") else text


@dataclass(frozen=True, slots=True)
class Updates:
    """The states of a reference set, ready to be asked.  Made by :func:`updates_of`."""

    states: Mapping[tuple[str, str], PackageState]
    several: frozenset[str]

    def label(self, provenance: Provenance) -> Label:
        """Return what a file of this provenance is counted as."""
        name, version = provenance.package, provenance.version
        if name not in self.several:
            return Label(provenance.grade)
        state = self.states.get((name, version))
        if state is None:
            return Label(provenance.grade, name, version)
        return Label(
            provenance.grade, name, version, state.superseded, state.successor, state.advisories
        )


def updates_of(states: Iterable[PackageState]) -> Updates:
    """Make ``states`` ready.  Of a package without any, every version counts as current."""
    table = {(state.package, state.version): state for state in states}
    return Updates(table, frozenset(name for name, _ in table))


NO_UPDATES = updates_of(())
"""Nothing is known of newer versions."""
