from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from undercroft.base import EnvironmentFault, FormatError, HashAlgorithm
from undercroft.cli import ima
from undercroft.testing.ima import SimulatedIma, boot_pcrs

SHA256 = HashAlgorithm.SHA256
SIGNATURE = bytes.fromhex("030204a1b2c3d40005") + b"12345"


def booted() -> SimulatedIma:
    kernel = SimulatedIma(boot_pcrs(HashAlgorithm.SHA1, SHA256), template="ima-sig")
    kernel.boot_aggregate()
    kernel.measure("/usr/bin/sh", b"sh", {"sig": SIGNATURE})
    kernel.measure("/usr/bin/odd", b"odd", {"sig": b"\x01"})
    kernel.violation("/var/log/wtmp")
    kernel.buffer("kexec-cmdline", b"quiet")
    return kernel


@pytest.fixture(params=["binary", "ascii"])
def file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    path = tmp_path / "list"
    path.write_bytes(getattr(booted(), request.param))
    return path


def run(*arguments: str, status: int = 0) -> str:
    result = CliRunner().invoke(ima.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout


def test_show_tells_every_entry(file: Path) -> None:
    out = run("show", str(file))
    head, *lines = out.splitlines()
    assert "sha1 template hashes, 5 entries" in head
    assert len([line for line in lines if "PCR 10" in line]) == 5
    assert "VIOLATION (claimed)  /var/log/wtmp" in out
    assert "buffer: command line for kexec: 'quiet'" in out
    assert "EVM_IMA_XATTR_DIGSIG version 2, sha256, key a1b2c3d4 (claimed)" in out
    assert "not a signature's xattr type" not in out
    assert "version is cut short" in out


def test_show_as_json(file: Path) -> None:
    found = json.loads(run("show", str(file), "--json"))
    assert [entry["path"] for entry in found["entries"]] == [
        "boot_aggregate",
        "/usr/bin/sh",
        "/usr/bin/odd",
        "/var/log/wtmp",
        "kexec-cmdline",
    ]
    assert [entry["violation"] for entry in found["entries"]] == [False, False, False, True, False]
    assert found["entries"][1]["fields"]["sig"] == SIGNATURE.hex()


@pytest.mark.parametrize("bank", ["sha1", "sha256"])
def test_replay_gives_the_pcr(file: Path, bank: str) -> None:
    algorithm = HashAlgorithm.from_name(bank)
    assert algorithm is not None
    value = booted().bank(algorithm).values[10].hex()
    assert value in run("replay", str(file), "--bank", bank)
    found = json.loads(run("replay", str(file), "--bank", bank, "--json"))
    assert found["pcrs"] == {bank: {"10": value}}
    assert (found["entries"], found["violations"]) == (5, [3])
    assert found["wrong-template-hashes"] == []
    assert found["boot-aggregates"] == [0]


def test_replay_tells_wrong_template_hashes(tmp_path: Path) -> None:
    data = bytearray(booted().binary)
    data[4] ^= 1
    path = tmp_path / "list"
    path.write_bytes(data)
    assert "not those of their entries: [0]" in run("replay", str(path), status=5)
    found = json.loads(run("replay", str(path), "--json", status=5))
    assert found["wrong-template-hashes"] == [0]


def test_a_template_without_a_digest(tmp_path: Path) -> None:
    kernel = SimulatedIma(boot_pcrs(SHA256), template="n-ng|iuid")
    kernel.measure("/x", b"x", {"iuid": bytes(4)})
    path = tmp_path / "list"
    path.write_bytes(kernel.binary)
    assert "no digest  /x" in run("show", str(path))
    assert json.loads(run("show", str(path), "--json"))["entries"][0]["digest"] is None


def test_a_bank_that_is_none() -> None:
    result = CliRunner().invoke(ima.app, ["replay", "x", "--bank", "md5"])
    assert result.exit_code == 2


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read the measurement list"):
        run("show", str(tmp_path / "nothing"))


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_a_file_that_is_something_else(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "list"
    path.write_bytes(content)
    with pytest.raises(FormatError):
        run("replay", str(path))


def test_a_file_that_is_too_large(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "list"
    path.write_bytes(booted().binary)
    monkeypatch.setattr(ima, "MAX_LIST_SIZE", 100)
    with pytest.raises(FormatError, match="too large"):
        run("show", str(path))
