"""Policies as TOML text.  Strict: every layer is written out, and nothing unknown is.

A policy that leaves a layer out would be read as "not required" by one person and as "default"
by another, so leaving one out is refused.  Within a section, actions may be left out; they are
then the strictest that the rule has.  The sections ``updates``, ``running`` and ``rules`` demand
more than the layers do, and may be left out whole.

``extends = "default"`` starts from another policy: what a section says is said in place of what
the other says there, field by field; rules are added.  What comes of it has to be whole.
"""

from __future__ import annotations

import dataclasses
import datetime as dt
import tomllib
from collections.abc import Callable

import msgspec

from undercroft.base import FormatError, Grade, HashAlgorithm
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
    timestamp,
)

FORMAT = "undercroft.policy/1"
MAX_CHAIN = 8
"""How many policies may extend one another."""
MAX_SIZE = 64 << 10
"""Characters of the longest policy we read."""

_NAME = "policy"
_STATE = "state"
"""For one path or buffer only: what is found is stated, and does nothing."""


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    pass


class _Quote(_Section, frozen=True):
    banks: list[str]
    weak: Action = Action.CONTRAINDICATE


class _Boot(_Section, frozen=True):
    pcrs: list[int]
    secure_boot: Requirement
    unknown: Action = Action.CONTRAINDICATE
    secure_boot_mode: SecureBootMode | None = None
    authorities: list[str] | None = None
    sbat: dict[str, int] = {}


class _Files(_Section, frozen=True):
    ima: Requirement
    unknown: Action = Action.CONTRAINDICATE
    violations: Action = Action.CONTRAINDICATE
    violations_at: dict[str, str] = {}
    buffers: dict[str, str] = {}
    exclude: list[str] = []
    keys: list[str] = []
    unknown_at: dict[str, str] = {}
    elsewhere: list[str] = []
    conffiles: Action = Action.CONTRAINDICATE


class _SecureKernel(_Section, frozen=True):
    facts: list[str]
    unknown: Action = Action.CONTRAINDICATE


class _Reference(_Section, frozen=True):
    affirm: list[Grade]
    other: Action = Action.CONTRAINDICATE


class _Result(_Section, frozen=True):
    validity_s: int
    max_age_s: int


class _Updates(_Section, frozen=True):
    superseded_days: int = 0
    superseded: Action = Action.CONTRAINDICATE
    vulnerable_days: int = 0
    vulnerable: Action = Action.CONTRAINDICATE


class _Running(_Section, frozen=True):
    kernel_minimum: str = ""
    modules: list[str] | None = None
    notable: list[str] | None = None
    bpf: list[str] | None = None
    devices: list[str] | None = None
    otherwise: Action = Action.CONTRAINDICATE


class _Rule(_Section, frozen=True):
    id: str
    expect: str
    when: str = ""
    otherwise: Action = Action.CONTRAINDICATE
    why: str = ""
    suggest: str = ""


class _Policy(_Section, frozen=True):
    format: str
    id: str
    quote: _Quote
    boot: _Boot
    files: _Files
    secure_kernel: _SecureKernel
    reference: _Reference
    result: _Result
    updates: _Updates = _Updates()
    running: _Running = _Running()
    rules: list[_Rule] = []
    serial: int = 0
    expires: dt.datetime | None = None


def _bank(name: str) -> HashAlgorithm:
    algorithm = HashAlgorithm.from_name(name)
    if algorithm is None:
        raise ValueError(f"unknown PCR bank {name[:40]!r}")
    return algorithm


def _exceptions(table: dict[str, str]) -> tuple[tuple[str, Action | None], ...]:
    """Return what the patterns of a table do, in the order of the text."""
    return tuple(
        (pattern, None if action == _STATE else Action(action)) for pattern, action in table.items()
    )


def _policy(wire: _Policy) -> Policy:
    boot, running = wire.boot, wire.running
    return Policy(
        wire.id,
        QuoteRules(tuple(map(_bank, wire.quote.banks)), wire.quote.weak),
        BootRules(
            tuple(boot.pcrs),
            boot.secure_boot,
            boot.unknown,
            boot.secure_boot_mode,
            _some(boot.authorities),
            tuple(boot.sbat.items()),
        ),
        FileRules(
            wire.files.ima,
            wire.files.unknown,
            wire.files.violations,
            _exceptions(wire.files.violations_at),
            _exceptions(wire.files.buffers),
            tuple(wire.files.exclude),
            tuple(wire.files.keys),
            _exceptions(wire.files.unknown_at),
            tuple(wire.files.elsewhere),
            wire.files.conffiles,
        ),
        SecureKernelRules(tuple(wire.secure_kernel.facts), wire.secure_kernel.unknown),
        ReferenceRules(tuple(wire.reference.affirm), wire.reference.other),
        ResultRules(wire.result.validity_s, wire.result.max_age_s),
        UpdateRules(**msgspec.structs.asdict(wire.updates)),
        RunningRules(
            running.kernel_minimum,
            _some(running.modules),
            _some(running.notable),
            _some(running.bpf),
            _some(running.devices),
            running.otherwise,
        ),
        tuple(Expression(**msgspec.structs.asdict(rule)) for rule in wire.rules),
        wire.serial,
        _seconds(wire.expires),
    )


def _some(values: list[str] | None) -> tuple[str, ...] | None:
    return None if values is None else tuple(values)


def _seconds(moment: dt.datetime | None) -> int:
    if moment is None:
        return 0
    if moment.tzinfo is None:
        raise ValueError("a time without its zone: write it as 2027-01-01T00:00:00Z")
    return int(moment.timestamp())


def _load(text: str) -> dict[str, object]:
    if len(text) > MAX_SIZE:
        raise FormatError(_NAME, 0, "too long", expected=f"at most {MAX_SIZE}", got=len(text))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(_NAME, 0, f"not TOML: {error}") from error
    except RecursionError as error:
        raise FormatError(_NAME, 0, "nested too deeply") from error


def parse_policy(text: str, others: Callable[[str], str | None] | None = None) -> Policy:
    """Parse a policy.  Raises FormatError; an empty text is refused like any other gap.

    ``others`` gives the text of the policy that this one names in ``extends``, or None if there
    is no such policy.
    """
    value = _extended(_load(text), others, ())
    if not value:
        raise FormatError(_NAME, 0, "an empty policy demands nothing, so it can show nothing")
    try:
        wire = msgspec.convert(value, _Policy, strict=True)
        return _policy(wire)
    except (ValueError, OverflowError) as error:  # msgspec.ValidationError is one
        raise FormatError(_NAME, 0, str(error)) from error


def _extended(
    value: dict[str, object],
    others: Callable[[str], str | None] | None,
    chain: tuple[str, ...],
) -> dict[str, object]:
    """Return ``value`` put over what it extends; ``chain`` are the policies that led here."""
    if value and value.get("format") != FORMAT:
        got = repr(value.get("format"))[:80]
        raise FormatError(_NAME, 0, "another format or version", expected=FORMAT, got=got)
    name = value.pop("extends", None)
    if name is None:
        return value
    if not isinstance(name, str):
        raise FormatError(_NAME, 0, "extends names one policy", got=repr(name)[:80])
    if name in chain:
        raise FormatError(
            _NAME, 0, "policies extend each other in a circle", got=" -> ".join((*chain, name))
        )
    if len(chain) >= MAX_CHAIN:
        raise FormatError(_NAME, 0, f"a chain of more than {MAX_CHAIN} policies")
    text = others(name) if others else None
    if text is None:
        raise FormatError(_NAME, 0, "it extends a policy that is not here", got=repr(name[:80]))
    base = _extended(_load(text), others, (*chain, name))
    return _put_over(base, value)


def _put_over(base: dict[str, object], value: dict[str, object]) -> dict[str, object]:
    result = dict(base)
    for key, new in value.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            result[key] = {**old, **new}
        elif key == "rules" and isinstance(old, list) and isinstance(new, list):
            result[key] = [*old, *new]
        else:
            result[key] = new
    return result


def encode_policy(policy: Policy) -> str:
    """Write ``policy`` as TOML, every rule spelled out."""

    def row(name: str, **values: object) -> str:
        fields = ", ".join(f"{k.replace('_', '-')} = {_toml(v)}" for k, v in values.items())
        return f"{name} = {{ {fields} }}"

    quote, boot, files = policy.quote, policy.boot, policy.files
    kernel, reference, result = policy.secure_kernel, policy.reference, policy.result
    rows = [
        f"format = {_toml(FORMAT)}",
        f"id = {_toml(policy.id)}",
        *([f"serial = {policy.serial}"] if policy.serial else []),
        *([f"expires = {timestamp(policy.expires).isoformat()}"] if policy.expires else []),
        row("quote", banks=[bank.label for bank in quote.banks], weak=quote.weak),
        row(
            "boot",
            pcrs=boot.pcrs,
            secure_boot=boot.secure_boot,
            unknown=boot.unknown,
            **_said(secure_boot_mode=boot.secure_boot_mode, authorities=boot.authorities),
            **({"sbat": dict(boot.sbat)} if boot.sbat else {}),
        ),
        row(
            "files",
            ima=files.ima,
            unknown=files.unknown,
            violations=files.violations,
            **{name: value for name, value in _exceptions_of(files).items() if value},
        ),
        row("secure-kernel", facts=kernel.facts, unknown=kernel.unknown),
        row("reference", affirm=reference.affirm, other=reference.other),
        row("result", validity_s=result.validity_s, max_age_s=result.max_age_s),
    ]
    if policy.updates != UpdateRules():
        rows.append(row("updates", **_fields(policy.updates)))
    if policy.running != RunningRules():
        rows.append(row("running", **_said(**_fields(policy.running))))
    for rule in policy.rules:
        rows += ["[[rules]]", *(f"{name} = {_toml(text)}" for name, text in _fields(rule).items())]
    return "\n".join(rows) + "\n"


def _fields(rules: UpdateRules | RunningRules | Expression) -> dict[str, object]:
    return {field.name: getattr(rules, field.name) for field in dataclasses.fields(rules)}


def _said(**values: object) -> dict[str, object]:
    """Return the rules that are made: of an allow-list None is no rule."""
    return {name: value for name, value in values.items() if value is not None}


def _exceptions_of(files: FileRules) -> dict[str, object]:
    return {
        "violations_at": dict(files.violations_at),
        "buffers": dict(files.buffers),
        "exclude": files.exclude,
        "keys": files.keys,
        "unknown_at": dict(files.unknown_at),
        "elsewhere": files.elsewhere,
        "conffiles": None if files.conffiles is Action.CONTRAINDICATE else files.conffiles,
    }


def _toml(value: object) -> str:
    match value:
        case None:
            return _toml(_STATE)
        case dict():
            pairs = (f"{_toml(name)} = {_toml(inner)}" for name, inner in value.items())
            return f"{{ {', '.join(pairs)} }}"
        case Action() | Requirement() | Grade() | SecureBootMode():
            return _toml(value.value)
        case str():
            # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
            return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
    return str(value)
