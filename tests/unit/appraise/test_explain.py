"""Every verdict explains itself: rule, evidence, expected, found, and what a person might do."""

from __future__ import annotations

import pytest

from undercroft.appraise.explain import ALWAYS, RULES, explain
from undercroft.appraise.model import failed, passed, stated
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.policy import Action


def finding(name: str, outcome: Outcome = Outcome.UNKNOWN, **details: JsonValue) -> Finding:
    return Finding(name, outcome, name, details, "the source")


@pytest.mark.parametrize(
    ("name", "outcome", "rule"),
    [
        ("boot.pcr.4", Outcome.UNKNOWN, "boot.pcrs"),
        ("boot.pcr.4", Outcome.FAIL, ALWAYS),
        ("ima.file", Outcome.UNKNOWN, "files.unknown"),
        ("ima.file", Outcome.FAIL, ALWAYS),
        ("ima.violation", Outcome.FAIL, "files.violations-at"),
        ("ima.files", Outcome.FAIL, "files"),
        ("launch.records", Outcome.FAIL, ALWAYS),
        ("secureboot.enabled", Outcome.FAIL, "boot.secure-boot"),
        ("kernel.text", Outcome.FAIL, "secure-kernel.facts"),
        ("kernel.bpf.watchers", Outcome.UNKNOWN, "running.bpf"),
        ("updates.package", Outcome.UNKNOWN, "updates"),
        ("evidence.time", Outcome.FAIL, "result.max-age-s"),
        ("something.new", Outcome.FAIL, ALWAYS),
    ],
)
def test_the_rule_that_decided(name: str, outcome: Outcome, rule: str) -> None:
    why = explain(failed(finding(name, outcome), None, Action.WARN))
    assert why.rule.startswith(rule)
    assert why.suggestion
    assert why.evidence == "the source"
    assert set(why.as_json()) == {"rule", "evidence", "expected", "found", "suggestion"}


def test_expected_and_found_are_the_finding_s() -> None:
    seen = finding("boot.pcr.4", Outcome.FAIL, expected=["aa"], found="bb")
    why = explain(failed(seen, None))
    assert (why.expected, why.found) == (["aa"], "bb")
    assert explain(failed(finding("ima.file", path="/x"), None)).found == "/x"
    assert explain(failed(finding("ima.file", digest="d", path="/x"), None)).found == "d"
    assert explain(stated(finding("host.layer"))).expected == "a finding that passes"
    assert explain(passed(finding("cpu.idt", Outcome.PASS), None)).expected is None


def test_a_good_value_of_a_grade_that_is_not_good_enough() -> None:
    seen = finding("boot.pcr.4", Outcome.PASS, grades=["observed"], found="aa")
    assert explain(failed(seen, None, Action.WARN)).rule == "reference.affirm"


def test_a_policy_s_own_rule_says_it_itself() -> None:
    details: dict[str, JsonValue] = {
        "rule": "running.modules", "evidence": "kernel.modules", "expected": ["a"], "found": ["b"],
        "suggestion": "unload it",
    }  # fmt: skip
    why = explain(failed(finding("policy.running.modules", Outcome.FAIL, **details), None))
    assert why.as_json() == details


def test_a_more_particular_row_stands_before_a_less_particular_one() -> None:
    names = [name for name, _, _ in RULES]
    assert len(set(names)) == len(names)
    for at, name in enumerate(names):
        assert not any(name.startswith(earlier + ".") for earlier in names[:at]), name
