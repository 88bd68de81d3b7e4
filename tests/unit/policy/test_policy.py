"""Policies: strict text, safe defaults, combination only ever makes them stricter."""

from __future__ import annotations

import importlib.resources
import tomllib
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, Grade, HashAlgorithm
from undercroft.policy import (
    Action,
    BootRules,
    FileRules,
    Policy,
    QuoteRules,
    ReferenceRules,
    Requirement,
    ResultRules,
    SecureKernelRules,
    all_of,
    encode_policy,
    parse_policy,
)

SHIPPED = importlib.resources.files("undercroft.policy") / "policies"
DEFAULT_TEXT = (SHIPPED / "default.toml").read_text()
DEFAULT = parse_policy(DEFAULT_TEXT)


def test_the_default_is_short_safe_and_complete() -> None:
    assert len(DEFAULT_TEXT.splitlines()) <= 10
    assert DEFAULT.boot.secure_boot is Requirement.REQUIRED
    assert DEFAULT.files.ima is Requirement.REQUIRED
    assert DEFAULT.files.unknown is Action.CONTRAINDICATE
    assert set(range(10)) <= set(DEFAULT.boot.pcrs)
    assert DEFAULT.secure_kernel.facts
    assert Grade.OBSERVED not in DEFAULT.reference.affirm
    assert not DEFAULT.demands_nothing


def test_every_shipped_policy_parses_and_demands_something() -> None:
    names = [entry.name for entry in SHIPPED.iterdir()]
    assert len(names) >= 2
    for name in names:
        policy = parse_policy((SHIPPED / name).read_text())
        assert policy.id == name.removesuffix(".toml")
        assert not policy.demands_nothing


def test_actions_that_are_left_out_are_the_strictest() -> None:
    bare = parse_policy(
        """
        format = "undercroft.policy/1"
        id = "bare"
        quote = { banks = [] }
        boot = { pcrs = [], secure-boot = "not-required" }
        files = { ima = "not-required" }
        secure-kernel = { facts = [] }
        reference = { affirm = [] }
        result = { validity-s = 2, max-age-s = 1 }
        """
    )
    assert bare == Policy(
        "bare",
        QuoteRules(()),
        BootRules((), Requirement.NOT_REQUIRED),
        FileRules(Requirement.NOT_REQUIRED),
        SecureKernelRules(()),
        ReferenceRules(()),
        ResultRules(2, 1),
    )
    assert bare.demands_nothing
    actions = {
        bare.quote.weak,
        bare.boot.unknown,
        bare.files.unknown,
        bare.files.violations,
        bare.secure_kernel.unknown,
        bare.reference.other,
    }
    assert actions == {Action.CONTRAINDICATE}


@pytest.mark.parametrize(
    "demand",
    [
        {"boot": replace(DEFAULT.boot, pcrs=(0,), secure_boot=Requirement.NOT_REQUIRED)},
        {"boot": replace(DEFAULT.boot, pcrs=())},
        {"files": FileRules(Requirement.REQUIRED)},
        {"secure_kernel": SecureKernelRules(("kernel.text",))},
    ],
)
def test_any_one_demand_is_a_demand(demand: dict[str, object]) -> None:
    bare = replace(
        DEFAULT,
        boot=BootRules((), Requirement.NOT_REQUIRED),
        files=FileRules(Requirement.NOT_REQUIRED),
        secure_kernel=SecureKernelRules(()),
    )
    assert bare.demands_nothing
    assert not replace(bare, **demand).demands_nothing  # type: ignore[arg-type]


def edited(old: str, new: str) -> str:
    assert old in DEFAULT_TEXT
    return DEFAULT_TEXT.replace(old, new)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "demands nothing"),
        ("# nothing\n", "demands nothing"),
        ("x = [", "not TOML"),
        ("x = " + "[" * 30_000, "deeply"),
        ("#" * 70_000, "too long"),
        (edited("undercroft.policy/1", "undercroft.policy/2"), "version"),
        (edited('id = "default"', 'id = ""'), "needs an id"),
        (edited('id = "default"', 'id = "a"\nid = "b"'), "not TOML"),
        (edited("files = {", "file = {"), "unknown field"),
        (edited("quote = {", "#quote = {"), "missing required field `quote`"),
        (edited("pcrs = [0, ", "pcrs = [24, "), "PCR 24"),
        (edited("pcrs = [0, ", "pcrs = [-1, "), "PCR -1"),
        (edited("pcrs = [0, ", "pcrs = [1, "), "PCR is named twice"),
        (edited("pcrs = [0, ", 'pcrs = ["0", '), "Expected `int`"),
        (edited('["sha256"]', '["md5"]'), "unknown PCR bank"),
        (edited('["sha256"]', '["sha256", "sha256"]'), "bank is named twice"),
        (edited('"kernel.text"', '"a", "a"'), "fact is named twice"),
        (edited('"package", "built"', '"package", "package"'), "grade is named twice"),
        (edited('"package", "built"', '"rumour"'), "enum"),
        (edited('"kernel.tasks.crossview"], unknown = "insufficient"',
                '"kernel.tasks.crossview"], unknown = "warn"'), "never just a warning"),
        (edited('"required", unknown = "insufficient"', '"required", unknown = "warn"'),
         "never just a warning"),
        (edited('secure-boot = "required"', "secure-boot = true"), "Expected"),
        (edited("validity-s = 300", "validity-s = 0"), "validity"),
        (edited("validity-s = 300", "validity-s = 40000000"), "validity"),
        (edited("max-age-s = 120", "max-age-s = 0"), "age of evidence"),
        (edited("max-age-s = 120", "max-age-s = 300"), "born expired"),
        (edited('["sha256"]', "[]"), "in no bank"),
        (edited("files = {", 'files = { violations-at = { "/x" = "pass" },'), "not a valid Action"),
        (edited("files = {", 'files = { violations-at = { "" = "warn" },'), "empty pattern"),
        (edited("files = {", 'files = { buffers = { "" = "state" },'), "empty pattern"),
        (edited("files = {", 'files = { exclude = ["/"],'), "begins with / and a name"),
        (edited("files = {", 'files = { exclude = ["tmp/x"],'), "begins with / and a name"),
        (edited("files = {", 'files = { exclude = ["/*"],'), "begins with / and a name"),
        (edited("files = {", 'files = { exclude = ["/a", "/a"],'), "path is named twice"),
        (edited("files = {", 'files = { keys = ["k", "k"],'), "key is named twice"),
        (edited("max-age-s = 120", "max-age-s = 1979-05-27"), "Expected"),
    ],
)  # fmt: skip
def test_refused(text: str, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_policy(text)


def test_the_identifier_follows_what_the_policy_says() -> None:
    assert DEFAULT.identifier.startswith("default;sha256=")
    other = replace(DEFAULT, result=ResultRules(301, 120))
    assert other.identifier != DEFAULT.identifier
    reordered = replace(DEFAULT, boot=replace(DEFAULT.boot, pcrs=DEFAULT.boot.pcrs[::-1]))
    assert reordered.identifier == DEFAULT.identifier


def test_exceptions_are_said_by_path() -> None:
    text = edited(
        "files = {",
        'files = { violations-at = { "/var/log/*" = "state", "/var/*" = "warn" }, '
        'buffers = { ".ima" = "insufficient" }, exclude = ["/run/*"], keys = ["PEM"],',
    )
    files = parse_policy(text).files
    assert files.violations_at == (("/var/log/*", None), ("/var/*", Action.WARN))
    assert files.buffers == ((".ima", Action.INSUFFICIENT),)
    assert (files.exclude, files.keys) == (("/run/*",), ("PEM",))
    # The order of patterns is part of what a policy says.
    turned = replace(files, violations_at=files.violations_at[::-1])
    assert replace(DEFAULT, files=files).identifier != DEFAULT.identifier
    assert replace(DEFAULT, files=turned).identifier != replace(DEFAULT, files=files).identifier


def test_a_pattern_stands_once_in_a_table() -> None:
    for table in ("violations_at", "buffers"):
        with pytest.raises(ValueError, match="is named twice"):
            FileRules(Requirement.REQUIRED, **{table: (("/a", None), ("/a", Action.WARN))})  # type: ignore[arg-type]


def test_exceptions_of_one_policy_fall_when_another_does_not_make_them() -> None:
    exceptions = replace(
        DEFAULT.files,
        violations=Action.WARN,
        unknown=Action.WARN,
        violations_at=(("/a", None), ("/b", Action.CONTRAINDICATE)),
        buffers=((".ima", Action.INSUFFICIENT), ("x", None)),
        exclude=("/run/*", "/tmp/*"),
        keys=("one", "two"),
    )
    mild = replace(DEFAULT, files=exceptions)
    assert all_of("both", [mild, mild]).files == exceptions
    plain = FileRules(
        Requirement.NOT_REQUIRED, Action.WARN, Action.WARN, exclude=("/tmp/*",), keys=("two",)
    )
    both = all_of("both", [mild, replace(DEFAULT, files=plain)]).files
    assert both == FileRules(
        Requirement.REQUIRED,
        Action.INSUFFICIENT,
        Action.CONTRAINDICATE,
        exclude=("/tmp/*",),
        keys=("two",),
    )


actions = st.sampled_from(Action)
strict_actions = st.sampled_from([Action.INSUFFICIENT, Action.CONTRAINDICATE])
requirements = st.sampled_from(Requirement)
texts = st.text(st.characters(codec="utf-8"), min_size=1, max_size=8)


patterns = st.dictionaries(texts, st.none() | actions, max_size=3).map(lambda d: tuple(d.items()))


def unique(elements: st.SearchStrategy[Any]) -> st.SearchStrategy[tuple[Any, ...]]:
    return st.lists(elements, max_size=3, unique=True).map(tuple)


policies = st.builds(
    Policy,
    texts,
    st.builds(QuoteRules, unique(st.sampled_from(HashAlgorithm)).filter(bool), actions),
    st.builds(BootRules, unique(st.integers(0, 23)), requirements, strict_actions),
    st.builds(
        FileRules,
        requirements,
        actions,
        actions,
        patterns,
        patterns,
        unique(texts.filter(lambda text: text[0] not in "*?[").map("/".__add__)),
        unique(texts),
    ),
    st.builds(SecureKernelRules, unique(texts), strict_actions),
    st.builds(ReferenceRules, unique(st.sampled_from(Grade)), actions),
    st.builds(ResultRules, st.integers(1001, 2000), st.integers(1, 1000)),
)


@given(policies)
def test_any_policy_survives_its_text(policy: Policy) -> None:
    text = encode_policy(policy)
    assert parse_policy(text) == policy
    assert tomllib.loads(text)["id"] == policy.id


@given(st.text(max_size=50))
def test_only_format_errors_escape(text: str) -> None:
    with pytest.raises(FormatError):
        parse_policy(text)


_RANK = {action: rank for rank, action in enumerate(Action)}


@given(st.lists(policies, min_size=1, max_size=3))
def test_all_of_is_at_least_as_strict_as_each(parts: list[Policy]) -> None:
    combined = all_of("all", parts)
    for part in parts:
        assert set(part.quote.banks) <= set(combined.quote.banks)
        assert set(part.boot.pcrs) <= set(combined.boot.pcrs)
        assert set(part.secure_kernel.facts) <= set(combined.secure_kernel.facts)
        assert set(combined.reference.affirm) <= set(part.reference.affirm)
        assert combined.result.validity_s <= part.result.validity_s
        assert combined.result.max_age_s <= part.result.max_age_s
        pairs = [
            (part.quote.weak, combined.quote.weak),
            (part.boot.unknown, combined.boot.unknown),
            (part.files.unknown, combined.files.unknown),
            (part.files.violations, combined.files.violations),
            (part.secure_kernel.unknown, combined.secure_kernel.unknown),
            (part.reference.other, combined.reference.other),
        ]
        assert all(_RANK[theirs] <= _RANK[ours] for theirs, ours in pairs)
        for mine, all_ in (
            (part.boot.secure_boot, combined.boot.secure_boot),
            (part.files.ima, combined.files.ima),
        ):
            assert mine is Requirement.NOT_REQUIRED or all_ is Requirement.REQUIRED


def test_all_of_one_is_that_one_and_of_none_is_refused() -> None:
    assert all_of("default", [DEFAULT]) == DEFAULT
    with pytest.raises(ValueError, match="demands nothing"):
        all_of("none", [])
