"""``undercroft guest``, with guests that are only files."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from undercroft.base import EnvironmentFault
from undercroft.cli import guest as cli
from undercroft.cli.main import app
from undercroft.guests.chain import Chain
from undercroft.guests.info import GuestInfo, save_info
from undercroft.guests.manifest import BuiltFile, GuestBuild
from undercroft.guests.processes import ProcessId
from undercroft.guests.run import Guest, RunOptions
from undercroft.packages import VerifiedPackage
from undercroft.reference.model import Grade, Provenance

Invoke = Callable[..., Any]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def invoke(home: Path) -> Invoke:
    def run(*arguments: str) -> Any:
        return CliRunner().invoke(app, ["guest", *arguments])

    return run


def _guest(home: Path, name: str = "g") -> Guest:
    folder = home / "guests" / name
    folder.mkdir(parents=True)
    info = GuestInfo(
        name=name, folder=folder, build=Path("/b"), kernel_release="6.1.0", accel="tcg",
        cpu="max", cpus=2, memory_mb=512, ram=folder / "ram", command_line="quiet",
        started="2026-01-02T03:04:05+00:00", qmp=folder / "q", run_qmp=folder / "r",
        serial=folder / "s", serial_log=folder / "l", vtpm=folder / "v", vtpm_control=None,
        processes={"qemu": ProcessId(2**22 + 7, 1, "no boot")}, arguments=(),
    )  # fmt: skip
    save_info(info)
    return Guest(info)


def _build(folder: Path) -> GuestBuild:
    source = Provenance(Grade.PACKAGE, "p", "1.0", "Debian bookworm main: pool/p", "aa", "B" * 40)
    part = BuiltFile(folder / "vmlinuz", "ab" * 32, source)
    package = VerifiedPackage("linux-image", "6.1-1", "amd64", folder / "p.deb", "cd" * 32, source)
    return GuestBuild(
        "micro", "00", "6.1.0", part, part, part, part, "quiet", {}, (package,)
    )  # fmt: skip


@pytest.fixture
def built(home: Path, monkeypatch: pytest.MonkeyPatch) -> GuestBuild:
    result = _build(home)
    monkeypatch.setattr(cli, "build", lambda **_kwargs: result)
    return result


def test_no_guests(invoke: Invoke) -> None:
    result = invoke("list")
    assert result.exit_code == 0
    assert "no guests" in result.stdout
    assert json.loads(invoke("list", "--json").stdout) == []


def test_a_stopped_guest_is_listed(invoke: Invoke, home: Path) -> None:
    _guest(home)
    assert "stopped" in invoke("list").stdout
    (row,) = json.loads(invoke("list", "--json").stdout)
    assert (row["name"], row["state"], row["kernel_release"]) == ("g", "stopped", "6.1.0")


def test_what_a_dead_guest_left_is_told(invoke: Invoke, home: Path) -> None:
    guest = _guest(home)
    guest.info.ram.touch()
    assert "died" in invoke("list").stdout
    assert invoke("stop", "g").exit_code == 0
    assert not guest.info.ram.exists()


def test_a_broken_guest_is_told_on_standard_error(invoke: Invoke, home: Path) -> None:
    guest = _guest(home)
    (guest.info.folder / "guest.json").write_text("{")
    result = invoke("list", "--json")
    assert json.loads(result.stdout) == []
    assert "cannot be read" in result.stderr


def test_stopping(invoke: Invoke, home: Path) -> None:
    _guest(home, "one")
    _guest(home, "two")
    assert "none was running" in invoke("stop", "one").stdout
    assert json.loads(invoke("stop", "--all", "--json").stdout) == {"stopped": []}
    result = invoke("stop", "none")
    assert isinstance(result.exception, EnvironmentFault)


@pytest.mark.parametrize("arguments", [("stop",), ("stop", "g", "--all"), ("run", "--cpus", "0")])
def test_usage_errors(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2


def test_building(invoke: Invoke, built: GuestBuild) -> None:
    result = invoke("build")
    assert result.exit_code == 0
    assert "linux-image" in result.stdout
    assert "Debian bookworm main" in result.stdout
    document = json.loads(invoke("build", "--json").stdout)
    assert document["packages"][0]["signer"] == "B" * 40
    assert document["kernel_sha256"] == "ab" * 32


@pytest.mark.parametrize("as_json", [True, False])
def test_running(
    invoke: Invoke,
    home: Path,
    built: GuestBuild,
    monkeypatch: pytest.MonkeyPatch,
    as_json: bool,
) -> None:
    seen: list[RunOptions] = []

    def start(_build: GuestBuild, where: Path, name: str, options: RunOptions, **_: Any) -> Guest:
        seen.append(options)
        return _guest(where, name)

    monkeypatch.setattr(cli, "start", start)
    monkeypatch.setattr(Guest, "wait_ready", lambda _self, _timeout: 8.5)
    result = invoke(
        "run", "--name", "x", "--accel", "tcg", "--memory", "300", *(["--json"] if as_json else [])
    )
    assert result.exit_code == 0
    assert seen[0].accel is not None
    assert (seen[0].accel.value, seen[0].memory_mb) == ("tcg", 300)
    if as_json:
        assert json.loads(result.stdout)["ready_s"] == 8.5
    else:
        assert "ready after 8.5 s" in result.stdout


def test_a_guest_that_does_not_come_up_is_stopped(
    invoke: Invoke, home: Path, built: GuestBuild, monkeypatch: pytest.MonkeyPatch
) -> None:
    stopped: list[str] = []

    def fail(_self: Guest, _timeout: float) -> float:
        raise EnvironmentFault("not ready")

    monkeypatch.setattr(cli, "start", lambda _b, where, name, *_a, **_k: _guest(where, name))
    monkeypatch.setattr(Guest, "wait_ready", fail)
    monkeypatch.setattr(Guest, "stop", lambda self: stopped.append(self.info.name))
    result = invoke("run", "--name", "x")
    assert isinstance(result.exception, EnvironmentFault)
    assert stopped == ["x"]


def test_the_adversaries_of_this_checkout_are_found() -> None:
    folder = cli.adversary_sources()
    assert folder is not None
    named = {word.removesuffix(".o") for word in (folder / "Kbuild").read_text().split()}
    sources = {path.stem for path in folder.glob("*.c")}
    assert {"inline_patch", "hide_task"} <= sources <= named


def test_a_debian_guest_is_built_by_its_chain_and_says_what_that_leaves_out(
    invoke: Invoke, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []

    def build_kind(kind: cli.Kind, chain: cli.ChainOption, **_: Any) -> GuestBuild:
        asked.extend((kind, chain))
        return replace(_build(home), chain=Chain(chain.value), disk=_build(home).kernel)

    monkeypatch.setattr(cli, "build_kind", build_kind)
    result = invoke("build", "debian", "--chain", "legacy")
    assert result.exit_code == 0
    assert asked == [cli.Kind.DEBIAN, cli.ChainOption.LEGACY]
    assert "leaves unmeasured" in result.stdout
    assert "disk    sha256:abab" in result.stdout
    told = json.loads(invoke("build", "debian", "--json").stdout)
    assert (told["chain"], told["disk_sha256"]) == ("grub", "ab" * 32)


@pytest.mark.parametrize(
    "arguments", [("run", "debian", "--append", "x"), ("run", "--memory", "100"), ("run", "mars")]
)
def test_what_cannot_be_run(invoke: Invoke, arguments: tuple[str, ...]) -> None:
    assert invoke(*arguments).exit_code == 2
