"""``undercroft reference predict`` and ``diff``, over a build that is only files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from undercroft.base import EnvironmentFault, HashAlgorithm
from undercroft.cli.main import app
from undercroft.formats.eventlog import parse_eventlog
from undercroft.guests.chain import Chain
from undercroft.guests.manifest import BuiltFile, GuestBuild, save_build
from undercroft.reference.boot import LegacyBoot, encode_prediction, predict_legacy_boot
from undercroft.reference.model import Grade, Provenance

Invoke = Callable[..., Any]
SOURCE = Provenance(Grade.PACKAGE, "p", "1.0", "Debian bookworm main: pool/p", "aa", "B" * 40)
SECTOR = b"code".ljust(440, b"\0") + bytes(70) + b"\x55\xaa"
BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home with a build that starts from a BIOS: no firmware has to be run to predict it."""
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path))
    folder = tmp_path / "builds" / "debian-legacy"
    folder.mkdir(parents=True)

    def built(name: str, data: bytes) -> BuiltFile:
        (folder / name).write_bytes(data)
        return BuiltFile(folder / name, hashlib.sha256(data).hexdigest(), SOURCE)

    part = built("vmlinuz", b"kernel")
    build = GuestBuild(
        "debian", "00", "6.1.0", part, part, part, part, "quiet", {}, (),
        chain=Chain.LEGACY, disk=built("disk.raw", SECTOR),
        boot_files={"gpt": built("gpt", SECTOR), "option-rom": built("option-rom", b"rom")},
    )  # fmt: skip
    save_build(build, folder)
    return tmp_path


@pytest.fixture
def invoke(folder: Path) -> Invoke:
    def run(verb: str, *arguments: str) -> Any:
        return CliRunner().invoke(app, ["reference", verb, *arguments, "--accel", "tcg"])

    return run


def log(sector: bytes = SECTOR) -> bytes:
    events = predict_legacy_boot(LegacyBoot(sector, b"rom", SOURCE, SOURCE))
    return encode_prediction(events, BANKS)


def test_every_event_is_shown_with_its_source_and_what_is_not_measured_is_said(
    invoke: Invoke,
) -> None:
    result = invoke("predict", "debian-legacy")
    assert result.exit_code == 0
    assert "boot code in the master boot record" in result.stdout
    assert "package: p 1.0" in result.stdout
    assert "PCR 1 is not predicted: SeaBIOS measures the SMBIOS tables" in result.stdout
    assert "NOT measured by this boot chain" in result.stdout
    assert "boot_aggregate" not in result.stdout  # it is over PCR 1 too


def test_as_json_and_as_an_event_log(invoke: Invoke, folder: Path) -> None:
    output = folder / "predicted.log"
    result = invoke("predict", "debian-legacy", "--json", "-o", str(output))
    told = json.loads(result.stdout)
    assert len(told["events"]) + 1 == len(parse_eventlog(output.read_bytes()).events)
    assert "1" not in told["pcrs"]["sha256"]
    assert set(told["unpredicted"]) == {"1"}
    assert told["never_measured"]
    assert told["boot_aggregate"] == {}
    assert told["events"][1]["provenance"]["package"] == "p"
    failed = invoke("predict", "debian-legacy", "-o", str(folder / "no" / "folder"))
    assert isinstance(failed.exception, EnvironmentFault)


def test_a_boot_as_predicted(invoke: Invoke, folder: Path) -> None:
    (folder / "log").write_bytes(log())
    result = invoke("diff", "debian-legacy", str(folder / "log"))
    assert result.exit_code == 0
    assert "0 deviations" in result.stdout


def test_another_boot_is_told_in_words_and_in_the_exit_status(invoke: Invoke, folder: Path) -> None:
    (folder / "log").write_bytes(log(b"evil" + SECTOR[4:]))
    result = invoke("diff", "debian-legacy", str(folder / "log"))
    assert result.exit_code == 3
    assert "PCR 4: other content: boot code in the master boot record" in result.stdout
    assert "predicted from built: Debian guest" in result.stdout
    told = json.loads(invoke("diff", "debian-legacy", str(folder / "log"), "--json").stdout)
    (one,) = told["deviations"]
    assert (one["pcr"], one["predicted"]["what"]) == (4, "boot code in the master boot record")
    assert one["found"]["pcr"] == 4


def test_a_log_with_no_bank_of_ours_cannot_be_compared(invoke: Invoke, folder: Path) -> None:
    header = log()[: 32 + 16 + 8 + 4]
    sm3 = header + b"\x12\0" + b"\x20\0" + b"\0"
    sm3 = sm3.replace(b"\x02\0\0\0\x12\0", b"\x01\0\0\0\x12\0")
    sm3 = sm3[:28] + (len(sm3) - 32).to_bytes(4, "little") + sm3[32:]
    (folder / "log").write_bytes(sm3)
    assert invoke("diff", "debian-legacy", str(folder / "log")).exit_code == 2


@pytest.mark.parametrize(
    "arguments",
    [("nothing",), ("qemu:none",), ("dump:x",), ("debian-legacy",), ("debian-legacy", "/none")],
)
def test_what_is_not_there(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    assert isinstance(invoke("diff", *arguments).exception, EnvironmentFault)
