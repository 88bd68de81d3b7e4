"""One checked fact and its three possible outcomes."""

from __future__ import annotations

import enum
from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias, Union

import msgspec

JsonValue: TypeAlias = Union[  # noqa: UP007 - recursive: needs the runtime form
    bool, int, float, str, Sequence["JsonValue"], Mapping[str, "JsonValue"], None
]
"""What a finding's details may hold, so that every finding has one JSON form."""


class Outcome(enum.Enum):
    """PASS, FAIL or UNKNOWN.  UNKNOWN (could not tell) is never fine."""

    PASS = "pass"
    UNKNOWN = "unknown"
    FAIL = "fail"


class Finding(msgspec.Struct, frozen=True):
    """One checked fact.

    ``id`` is stable and dotted (``kernel.text``, ``quote.nonce``); ``summary`` is one sentence
    for a person; ``details`` are values for a program (expected, got, address, rule, ...);
    ``source`` says where the reference for the check came from, if it has one.

    A struct, not a dataclass: a verifier makes some in every appraisal of every guest, and a struct
    is made in an eighth of the time.  ``msgspec.structs.replace`` copies one with changes.
    """

    id: str
    outcome: Outcome
    summary: str
    details: Mapping[str, JsonValue] = msgspec.field(default_factory=dict)
    source: str = ""

    def as_json(self) -> dict[str, JsonValue]:
        """Return the finding as a JSON object."""
        return {
            "id": self.id,
            "outcome": self.outcome.value,
            "summary": self.summary,
            "details": self.details,
            "source": self.source,
        }


_SEVERITY = {Outcome.PASS: 0, Outcome.UNKNOWN: 1, Outcome.FAIL: 2}


def worst(outcomes: Iterable[Outcome]) -> Outcome:
    """Return the worst outcome; UNKNOWN if there is none, for nothing checked is nothing known."""
    return max(outcomes, key=_SEVERITY.__getitem__, default=Outcome.UNKNOWN)
