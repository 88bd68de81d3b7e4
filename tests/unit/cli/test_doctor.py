from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner

from undercroft.cli import doctor
from undercroft.cli.main import app
from undercroft.guests.host import PYTHON_PURPOSE, Check, State

GOOD = (
    Check("swtpm", State.OK, "0.7.1", "the vTPM", "swtpm"),
    Check("msgspec", State.OK, "1", PYTHON_PURPOSE),
    Check("rich", State.OK, "2", PYTHON_PURPOSE),
)
LIMITED = Check("KVM", State.LIMITED, "hangs", "fast", needed=False)
NO_GCC = Check("gcc", State.MISSING, "not installed", "adversaries", "gcc", needed=False)
NO_QEMU = Check("qemu", State.MISSING, "not installed", "guests", "qemu-system-x86")
NO_NUMPY = Check("numpy", State.MISSING, "not installed", PYTHON_PURPOSE)


def _doctor(
    monkeypatch: pytest.MonkeyPatch, *checks: Check, arguments: tuple[str, ...] = ()
) -> Any:
    monkeypatch.setattr(doctor, "survey", lambda _home: checks)
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_all_is_here(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _doctor(monkeypatch, *GOOD, LIMITED)
    assert result.exit_code == 0
    assert "Everything needed is here" in result.stdout
    assert "2 as required" in result.stdout
    assert "msgspec" not in result.stdout


def test_what_is_nice_to_have_does_not_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _doctor(monkeypatch, *GOOD, NO_GCC)
    assert result.exit_code == 0
    assert "As root: apt-get install gcc" in result.stdout


def test_what_is_needed_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _doctor(monkeypatch, *GOOD, NO_QEMU, NO_GCC)
    assert result.exit_code == 1
    assert "MISSING" in result.stdout
    assert "apt-get install gcc qemu-system-x86" in result.stdout


def test_a_missing_python_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _doctor(monkeypatch, *GOOD, NO_NUMPY)
    assert result.exit_code == 1
    assert "numpy" in result.stdout
    assert "msgspec" in result.stdout


def test_for_programs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = _doctor(monkeypatch, *GOOD, NO_QEMU, arguments=("--json",))
    document = json.loads(result.stdout)
    assert (result.exit_code, document["ready"]) == (1, False)
    assert document["apt"] == "apt-get install qemu-system-x86"
    assert [c["name"] for c in document["checks"]] == ["swtpm", "msgspec", "rich", "qemu"]
