"""Rules that a policy may have beyond the layers: what is of today, what may run, expressions.

Every one only demands.  None (not an empty list) is a rule that is not made.
"""

from __future__ import annotations

import datetime as dt
import enum
import functools
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from undercroft.base import FormatError

if TYPE_CHECKING:
    from cel import Program

MAX_DAYS = 3660
MAX_EXPRESSION = 1000
"""Characters of one expression."""
MAX_EXPRESSIONS = 64
MAX_LOOPS = 3
"""How often ``all``, ``exists``, ``exists_one``, ``filter`` and ``map`` may stand in one: they
nest, and their cost multiplies."""

_LOOP = re.compile(r"\.\s*(?:all|exists|exists_one|filter|map)\s*\(\s*(\w*)")
_ID = re.compile(r"[a-z0-9]+(?:[.-][a-z0-9]+)*")
_RELEASE = re.compile(r"\d{1,9}(?:[.-]\d{1,9})*")
_NUMBER = re.compile(r"\d{1,9}")


class Action(enum.Enum):
    """What a deviation does to the verdict, mildest first."""

    WARN = "warn"
    """The machine is not affirmed; the result says warning."""
    INSUFFICIENT = "insufficient"
    """The machine is not affirmed; the result says that there is not enough to tell."""
    CONTRAINDICATE = "contraindicate"
    """The machine is called untrustworthy."""


class SecureBootMode(enum.Enum):
    """UEFI 2.10, section 32.3.  Setup and audit mode never pass."""

    USER = "user"
    """User mode or stricter."""
    DEPLOYED = "deployed"


@dataclass(frozen=True, slots=True)
class UpdateRules:
    """What packages that are not of today do, and after how many days.

    ``superseded``: there is a newer version.  ``vulnerable``: the newer version fixes what an
    advisory is about.  The days count from when the newer version was made, which is before
    anyone could install it.
    """

    superseded_days: int = 0
    superseded: Action = Action.CONTRAINDICATE
    vulnerable_days: int = 0
    vulnerable: Action = Action.CONTRAINDICATE

    def __post_init__(self) -> None:
        if not (0 <= self.superseded_days <= MAX_DAYS and 0 <= self.vulnerable_days <= MAX_DAYS):
            raise ValueError(f"days are 0 to {MAX_DAYS}")


@dataclass(frozen=True, slots=True)
class RunningRules:
    """What may run in the kernel and be plugged in; shell patterns, None for no rule.

    ``kernel_minimum``: the least kernel release, by its numbers (``6.1.0-56``).  ``modules``:
    names that may be loaded.  ``notable``: what may trace, probe and redirect, as
    ``kind: description`` of the finding kernel.notable.  ``bpf``: BPF programs that may watch, as
    ``tag:<tag>``, ``name:<name>`` or ``uid:<owner>``.  ``devices``: devices in the machine's
    descriptor.  ``otherwise``: what any other does.
    """

    kernel_minimum: str = ""
    modules: tuple[str, ...] | None = None
    notable: tuple[str, ...] | None = None
    bpf: tuple[str, ...] | None = None
    devices: tuple[str, ...] | None = None
    otherwise: Action = Action.CONTRAINDICATE

    def __post_init__(self) -> None:
        if self.kernel_minimum and not _RELEASE.fullmatch(self.kernel_minimum):
            raise ValueError(f"{self.kernel_minimum[:40]!r} is not the start of a kernel release")
        for patterns in (self.modules, self.notable, self.bpf, self.devices):
            if patterns and (len(set(patterns)) != len(patterns) or not all(patterns)):
                raise ValueError("a pattern that is empty or stands twice")
        for pattern in self.bpf or ():
            if pattern.partition(":")[0] not in ("tag", "name", "uid"):
                raise ValueError(f"{pattern[:40]!r}: a BPF program is named by tag:, name: or uid:")


def release_numbers(release: str) -> tuple[int, ...]:
    """Return the numbers that a kernel release begins with: (6, 1, 0, 56) for 6.1.0-56-amd64."""
    match = _RELEASE.match(release)
    return tuple(map(int, _NUMBER.findall(match[0]))) if match else ()


@dataclass(frozen=True, slots=True)
class Expression:
    """A demand in CEL, for what no field can say.

    ``expect`` has to be true; where ``when`` is false it is not asked.  Both may use ``findings``
    (by id: ``outcome``, ``summary``, ``details``; of several of one id the worst), ``every`` (the
    list of all, with ``id``), ``guest`` and ``now``.  ``otherwise`` is what false does; what
    cannot be evaluated is undetermined, at least.  ``why`` and ``suggest`` are for a person.
    """

    id: str
    expect: str
    when: str = ""
    otherwise: Action = Action.CONTRAINDICATE
    why: str = ""
    suggest: str = ""

    def __post_init__(self) -> None:
        if not _ID.fullmatch(self.id) or len(self.id) > 80:
            raise ValueError(f"{self.id[:40]!r} is not a rule's id: words joined by - or .")
        for text in filter(None, (self.expect, self.when)):
            if len(text) > MAX_EXPRESSION:
                raise ValueError(f"rule {self.id}: longer than {MAX_EXPRESSION} characters")
            if len(_LOOP.findall(text)) > MAX_LOOPS:
                raise ValueError(f"rule {self.id}: more than {MAX_LOOPS} loops")
            check_expression(self.id, text)


_FUNCTIONS = frozenset(
    {
        "bool", "bytes", "contains", "double", "duration", "dyn", "endsWith", "getDate",
        "getDayOfMonth", "getDayOfWeek", "getDayOfYear", "getFullYear", "getHours",
        "getMilliseconds", "getMinutes", "getMonth", "getSeconds", "int", "matches", "max", "min",
        "size", "startsWith", "string", "timestamp", "type", "uint",
    }
)  # fmt: skip
"""The functions of the CEL specification (doc/langdef.md), and max and min."""


@functools.lru_cache(MAX_EXPRESSIONS)
def _compiled(text: str) -> Program:
    # The library brings a command line with it, which takes most of a second to load.
    import cel

    return cel.compile(text)


_VARIABLES = frozenset({"findings", "every", "guest", "now"})


def check_expression(rule: str, text: str) -> None:
    """Raise ValueError unless ``text`` is CEL over the names that a rule may use."""
    try:
        program = _compiled(text)
    except ValueError as error:
        raise ValueError(f"rule {rule}: not CEL: {str(error).splitlines()[0][:200]}") from None
    unknown = set(program.variables()) - _VARIABLES - set(_LOOP.findall(text))
    if unknown:
        raise ValueError(f"rule {rule}: there is no {min(unknown)}, only {sorted(_VARIABLES)}")
    strange = {name for name in program.functions() if name[0].isalpha()} - _FUNCTIONS
    if strange:
        raise ValueError(f"rule {rule}: CEL has no function {min(strange)}")


def evaluate(text: str, context: dict[str, Any]) -> bool:
    """Return what the expression comes to.  Raises FormatError if that is not true or false."""
    try:
        value = _compiled(text).execute(context)
    except (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError) as error:
        raise FormatError("CEL expression", 0, str(error).splitlines()[0][:200]) from error
    if not isinstance(value, bool):
        raise FormatError("CEL expression", 0, "neither true nor false", got=type(value).__name__)
    return value


def timestamp(seconds: int) -> dt.datetime:
    """Return Unix seconds as CEL's timestamp."""
    return dt.datetime.fromtimestamp(seconds, dt.UTC)
