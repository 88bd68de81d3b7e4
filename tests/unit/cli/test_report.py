"""The report that a person reads at three in the morning."""

from __future__ import annotations

import pytest

from undercroft.base import Finding, JsonValue, Outcome
from undercroft.cli import render
from undercroft.cli.report import closer, headline, report_view

TEXT = Finding("kernel.text", Outcome.PASS, "all is equal", {"bytes": 14_000_000})
WELL = [
    TEXT,
    Finding("kernel.rodata", Outcome.PASS, "constant data is equal"),
    Finding("cpu.idt", Outcome.PASS, "every gate is the kernel's"),
    Finding("new.family", Outcome.PASS, "well"),
]
HIDDEN: dict[str, JsonValue] = {"pid": 7, "comm": "miner", "missing_from": ["tasks list", "idr"]}
HOOK: dict[str, JsonValue] = {"hook": "timer of CPU 0", "target": "0xffffffffc0001000"}


def failed(*places: dict[str, JsonValue], count: int | None = None) -> Finding:
    details: dict[str, JsonValue] = {"anomalies": list(places), "limits": ["polling samples"]}
    details["count"] = len(places) if count is None else count
    return Finding("kernel.tasks.crossview", Outcome.FAIL, "a task is hidden", details)


def shown(facts: list[Finding]) -> str:
    console = render.console(record=True)
    console.width = 200
    console.print(report_view(facts, title="demo: Linux 6.1", target="qemu:demo"))
    return console.export_text()


def test_a_guest_that_is_well_says_so_first() -> None:
    lines = [line.rstrip() for line in shown(WELL).splitlines()]
    assert lines[:2] == ["demo: Linux 6.1", "nothing wrong was found: all 4 facts are well"]
    assert "look closer" not in "\n".join(lines)


def test_what_passed_is_put_together_by_family() -> None:
    text = shown(WELL)
    assert "text (14,000,000 bytes), rodata" in text
    assert "every gate is the kernel's" in text
    assert "the rest" in text


def test_what_is_wrong_comes_before_what_is_well() -> None:
    text = shown([*WELL, failed(HIDDEN)])
    assert "SOMETHING IS WRONG: one fact failed; 4 of 5 facts are well" in text
    assert text.index("a task is hidden") < text.index("examined, and well")
    assert "pid 7, comm miner, missing from tasks list and idr" in text
    assert "certain: every look saw it" in text
    assert "polling samples" in text


def test_what_cannot_be_told_is_no_alarm_and_no_pass() -> None:
    untold = Finding("kernel.bpf.watchers", Outcome.UNKNOWN, "could not tell: 1")
    text = shown([TEXT, untold])
    assert "nothing wrong was found, but one fact could not be told" in text
    assert "not certain" in text
    both = headline([untold, failed(HIDDEN), failed(HIDDEN)])
    assert both.plain.startswith("SOMETHING IS WRONG: 2 facts failed, one fact could not be told")


def test_long_lists_are_cut_and_counted() -> None:
    places: list[dict[str, JsonValue]] = [{"pid": number} for number in range(9)]
    text = shown([failed(*places, count=100)])
    assert "pid 5" in text
    assert "pid 6" not in text
    assert "and 94 more" in text


@pytest.mark.parametrize(
    ("place", "code"),
    [
        (HIDDEN, "find_task(prog, 7)"),
        (HOOK, "prog.read(0xffffffffc0001000, 64)"),
        ({"address": "0x400000"}, "--json"),
    ],
)
def test_how_to_look_closer(place: dict[str, JsonValue], code: str) -> None:
    commands = list(closer(failed(place), "qemu:demo"))
    assert code in commands[0]
    assert commands[-1].startswith("undercroft inspect qemu:demo --json")


def test_nothing_to_look_at_where_all_is_well() -> None:
    assert list(closer(TEXT, "qemu:demo")) == []


def test_other_kinds_of_details_are_shown_too() -> None:
    details: dict[str, JsonValue] = {"problems": {"evil": "nobody exports x"}, "limits": []}
    text = shown([Finding("kernel.modules.text", Outcome.FAIL, "code differs", details)])
    assert "evil nobody exports x" in text
    place: dict[str, JsonValue] = {
        "address": "0xffffffff81000000",
        "found_code": ["jmp"],
        "writable": True,
    }
    text = shown([Finding("kernel.text", Outcome.FAIL, "differs", {"mismatches": [place]})])
    assert "writable yes" in text
    assert "jmp" not in text
    long: dict[str, JsonValue] = {"rule": "x" * 500}
    assert "…" in shown([failed(long)])
