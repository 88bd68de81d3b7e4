"""``undercroft eventlog``, run as a person runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from undercroft.base import EnvironmentFault, FormatError, HashAlgorithm
from undercroft.cli.eventlog import app
from undercroft.cli.exit_status import USAGE
from undercroft.formats.eventlog import EventType, LogFormat
from undercroft.testing.eventlog import SimulatedFirmware

VECTORS = Path(__file__).parents[2] / "vectors" / "eventlog"
SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256


def _run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def _write(folder: Path, name: str, fw: SimulatedFirmware) -> Path:
    path = folder / name
    path.write_bytes(fw.log())
    return path


def test_show_tells_every_event_in_words() -> None:
    result = _run("show", VECTORS / "secureboot-grub.bin")
    assert result.exit_code == 0
    assert "TCG event log, crypto agile, 99 events" in result.stdout
    assert "variable SecureBoot (EFI_GLOBAL_VARIABLE): 1" in result.stdout
    assert "GRUB passed the command line: /vmlinuz-6.1.0-56-cloud-amd64" in result.stdout
    assert "(the digest confirms it)" in result.stdout


@pytest.mark.parametrize(
    ("name", "kind"),
    [("seabios-sha1", "SHA-1 digests (TPM 1.2 format)"), ("tdx-ccel", "(CCEL)")],
)
def test_show_tells_the_format(name: str, kind: str) -> None:
    assert kind in _run("show", VECTORS / f"{name}.bin").stdout


def test_show_as_json() -> None:
    shown = json.loads(_run("show", VECTORS / "tdx-ccel.bin", "--json").stdout)
    assert (shown["format"], shown["algorithms"], shown["padding"]) == ("ccel", ["sha384"], 512)
    assert shown["events"][0]["decoded"]["kind"] == "SpecIdEvent"


@pytest.mark.parametrize("name", ["secureboot-grub", "seabios-sha1", "quirk-shim-event-slack"])
def test_replay_as_json_is_exactly_three_things(name: str) -> None:
    replayed = json.loads(_run("replay", VECTORS / f"{name}.bin", "--json").stdout)
    expected = json.loads((VECTORS / "expected.json").read_text())[name]
    assert replayed == {key: expected[key] for key in ("pcrs", "events", "quirks")}


def test_replay_in_words() -> None:
    result = _run("replay", VECTORS / "quirk-digest-missing.bin")
    assert "sha256:\n   0  " in result.stdout
    assert "sha1: not replayed: event" in result.stdout
    assert "PCR 0 starts at locality 0" in result.stdout
    assert "quirk digest-missing: an event lacks a digest" in result.stdout
    assert "(events 2" in result.stdout
    assert "quirk padding-zeros" in _run("replay", VECTORS / "quirk-padding-zeros.bin").stdout


def test_diff_in_words_and_as_json(tmp_path: Path) -> None:
    before, after = SimulatedFirmware((SHA256,)), SimulatedFirmware((SHA256,))
    for fw in (before, after):
        fw.separators((7,))
    before.grub("linux /old")
    after.grub("linux /new")
    after.measure(5, EventType.EV_EFI_ACTION, b"action")
    files = _write(tmp_path, "a", before), _write(tmp_path, "b", after)
    assert _run("diff", *files).stdout.splitlines() == [
        'PCR 5: new: action "action"',
        "PCR 8: was GRUB ran: linux /old; is GRUB ran: linux /new",
        "2 changes; PCRs measured alike: 7",
    ]
    found = json.loads(_run("diff", *files, "--json").stdout)
    assert found["same"] == [7]
    assert [change["pcr"] for change in found["changes"]] == [5, 8]
    assert found["changes"][0]["before"] is None
    assert found["changes"][1]["before"]["type_name"] == "EV_IPL"


def test_diff_says_which_entries_of_a_database_changed(tmp_path: Path) -> None:
    old = VECTORS / "systemd-uki.bin"
    fw = SimulatedFirmware((SHA256,))
    fw.variable("dbx", b"")
    changes = _run("diff", old, _write(tmp_path, "b", fw)).stdout
    assert "    removed " in changes


def test_diff_of_logs_without_a_common_bank_is_a_usage_error(tmp_path: Path) -> None:
    sha1 = SimulatedFirmware((SHA1,), kind=LogFormat.TCG_1_2)
    sha1.separators()
    sha256 = SimulatedFirmware((SHA256,))
    result = _run("diff", _write(tmp_path, "a", sha1), _write(tmp_path, "b", sha256))
    assert result.exit_code == USAGE
    assert "no hash algorithm in common" in result.stderr


@pytest.mark.parametrize("verb", ["show", "replay"])
def test_a_broken_log_is_an_error_of_ours(verb: str) -> None:
    assert isinstance(_run(verb, VECTORS / "bad-event-cut.bin").exception, FormatError)


def test_a_file_that_cannot_be_read_is_an_environment_fault(tmp_path: Path) -> None:
    error = _run("show", tmp_path / "missing").exception
    assert isinstance(error, EnvironmentFault)
    assert error.where == str(tmp_path / "missing")
    assert error.remedy
