"""Policies as TOML text.  Strict: every section is written out, and nothing else is.

A policy that leaves a layer out would be read as "not required" by one person and as "default"
by another, so leaving one out is refused.  Within a section, actions may be left out; they are
then the strictest that the rule has.
"""

from __future__ import annotations

import tomllib

import msgspec

from undercroft.base import FormatError, Grade, HashAlgorithm
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

FORMAT = "undercroft.policy/1"
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


class _Files(_Section, frozen=True):
    ima: Requirement
    unknown: Action = Action.CONTRAINDICATE
    violations: Action = Action.CONTRAINDICATE
    violations_at: dict[str, str] = {}
    buffers: dict[str, str] = {}
    exclude: list[str] = []
    keys: list[str] = []


class _SecureKernel(_Section, frozen=True):
    facts: list[str]
    unknown: Action = Action.CONTRAINDICATE


class _Reference(_Section, frozen=True):
    affirm: list[Grade]
    other: Action = Action.CONTRAINDICATE


class _Result(_Section, frozen=True):
    validity_s: int
    max_age_s: int


class _Policy(_Section, frozen=True):
    format: str
    id: str
    quote: _Quote
    boot: _Boot
    files: _Files
    secure_kernel: _SecureKernel
    reference: _Reference
    result: _Result


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
    return Policy(
        wire.id,
        QuoteRules(tuple(map(_bank, wire.quote.banks)), wire.quote.weak),
        BootRules(tuple(wire.boot.pcrs), wire.boot.secure_boot, wire.boot.unknown),
        FileRules(
            wire.files.ima,
            wire.files.unknown,
            wire.files.violations,
            _exceptions(wire.files.violations_at),
            _exceptions(wire.files.buffers),
            tuple(wire.files.exclude),
            tuple(wire.files.keys),
        ),
        SecureKernelRules(tuple(wire.secure_kernel.facts), wire.secure_kernel.unknown),
        ReferenceRules(tuple(wire.reference.affirm), wire.reference.other),
        ResultRules(wire.result.validity_s, wire.result.max_age_s),
    )


def _load(text: str) -> dict[str, object]:
    if len(text) > MAX_SIZE:
        raise FormatError(_NAME, 0, "too long", expected=f"at most {MAX_SIZE}", got=len(text))
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise FormatError(_NAME, 0, f"not TOML: {error}") from error
    except RecursionError as error:
        raise FormatError(_NAME, 0, "nested too deeply") from error


def parse_policy(text: str) -> Policy:
    """Parse a policy.  Raises FormatError; an empty text is refused like any other gap."""
    value = _load(text)
    if not value:
        raise FormatError(_NAME, 0, "an empty policy demands nothing, so it can show nothing")
    try:
        wire = msgspec.convert(value, _Policy, strict=True)
        if wire.format != FORMAT:
            raise ValueError(f"another format or version: {wire.format[:80]!r}, not {FORMAT!r}")
        return _policy(wire)
    except ValueError as error:  # msgspec.ValidationError is one
        raise FormatError(_NAME, 0, str(error)) from error


def encode_policy(policy: Policy) -> str:
    """Write ``policy`` as TOML, every rule spelled out."""

    def row(name: str, **values: object) -> str:
        fields = ", ".join(f"{k.replace('_', '-')} = {_toml(v)}" for k, v in values.items())
        return f"{name} = {{ {fields} }}"

    quote, boot, files = policy.quote, policy.boot, policy.files
    kernel, reference, result = policy.secure_kernel, policy.reference, policy.result
    rows = (
        f"format = {_toml(FORMAT)}",
        f"id = {_toml(policy.id)}",
        row("quote", banks=[bank.label for bank in quote.banks], weak=quote.weak),
        row("boot", pcrs=boot.pcrs, secure_boot=boot.secure_boot, unknown=boot.unknown),
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
    )
    return "\n".join(rows) + "\n"


def _exceptions_of(files: FileRules) -> dict[str, object]:
    return {
        "violations_at": dict(files.violations_at),
        "buffers": dict(files.buffers),
        "exclude": files.exclude,
        "keys": files.keys,
    }


def _toml(value: object) -> str:
    match value:
        case None:
            return _toml(_STATE)
        case dict():
            pairs = (f"{_toml(name)} = {_toml(inner)}" for name, inner in value.items())
            return f"{{ {', '.join(pairs)} }}"
        case Action() | Requirement() | Grade():
            return _toml(value.value)
        case str():
            # A JSON string is a TOML basic string, but for DEL, which TOML wants escaped.
            return msgspec.json.encode(value).decode().replace("\x7f", "\\u007f")
        case list() | tuple():
            return f"[{', '.join(map(_toml, value))}]"
    return str(value)
