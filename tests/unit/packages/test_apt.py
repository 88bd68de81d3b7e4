"""apt with its state in a folder of ours, played by small scripts."""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.packages.apt import IndexTarget, PrivateApt, machine_architecture, machine_freshness

Scripts = Callable[..., Path]


@pytest.fixture
def scripts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Scripts:
    """A function that puts scripts in place of programs: scripts(apt_get="true")."""
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def write(**programs: str) -> Path:
        for name, body in programs.items():
            path = folder / name.replace("_", "-")
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(0o755)
        return folder

    return write


def _sources(tmp_path: Path, text: str) -> str:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "debian.sources").write_text(text)
    return f"echo \"LIST='/nonexistent'\"; echo \"PARTS='{tmp_path}/parts/'\""


GOOD = "Types: deb\nURIs: http://mirror.example\nSuites: bookworm\nComponents: main\n"


def test_the_configuration_keeps_everything_in_the_folder(tmp_path: Path, scripts: Scripts) -> None:
    scripts(apt_config=_sources(tmp_path, GOOD))
    root = tmp_path / "apt"
    PrivateApt(root, codename="bookworm").configure()
    text = (root / "apt.conf").read_text()
    for key in ("Dir::State ", "Dir::State::status ", "Dir::Cache ", "Dir::Etc::sourceparts "):
        assert f'{key}"{root}/' in text
    copied = (root / "etc" / "sources.list.d" / "copied.sources").read_text()
    assert "URIs: http://mirror.example" in copied
    assert "Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg" in copied


def test_no_source_for_the_release(tmp_path: Path, scripts: Scripts) -> None:
    scripts(apt_config=_sources(tmp_path, GOOD))
    with pytest.raises(EnvironmentFault, match="no source for Debian trixie"):
        PrivateApt(tmp_path / "apt", codename="trixie").configure()


def test_a_folder_that_apt_cannot_name(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="space or quote"):
        PrivateApt(tmp_path / "a b", codename="bookworm").configure()


def test_targets_that_are_on_disk(tmp_path: Path, scripts: Scripts) -> None:
    there = tmp_path / "m_main_binary-amd64_Packages"
    there.touch()
    scripts(
        apt_get=f"printf 'main/binary-amd64/Packages\\tbookworm/\\t{there}\\n';"
        "printf 'main/binary-amd64/Packages\\tgone\\t/nonexistent\\n'; echo noise"
    )
    targets = PrivateApt(tmp_path, codename="bookworm").targets()
    assert targets == (IndexTarget("main/binary-amd64/Packages", "bookworm", there),)
    assert targets[0].release_stem == f"{tmp_path}/m_"


def test_a_download_lands_in_the_folder(tmp_path: Path, scripts: Scripts) -> None:
    scripts(apt_get='echo "$@" > args; echo data > x_1_amd64.deb; cat args >&2')
    path = PrivateApt(tmp_path, codename="bookworm").download("x", "1", "amd64", tmp_path / "p")
    assert path == tmp_path / "p" / "x_1_amd64.deb"
    assert [p.name for p in (tmp_path / "p").iterdir()] == [path.name]


def test_what_apt_says_is_passed_on(tmp_path: Path, scripts: Scripts) -> None:
    scripts(apt_get="echo 'E: Could not resolve mirror.example' >&2; exit 100")
    with pytest.raises(EnvironmentFault) as caught:
        PrivateApt(tmp_path, codename="bookworm").update()
    assert caught.value.got == "E: Could not resolve mirror.example"


def test_a_download_of_nothing(tmp_path: Path, scripts: Scripts) -> None:
    scripts(apt_get="true")
    with pytest.raises(EnvironmentFault, match="gave 0 files"):
        PrivateApt(tmp_path, codename="bookworm").download("x", "1", "all", tmp_path / "p")


def test_no_apt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentFault, match="apt-get is not here"):
        PrivateApt(tmp_path, codename="bookworm").update()
    with pytest.raises(EnvironmentFault, match="apt does not work"):
        PrivateApt(tmp_path, codename="bookworm").configure()


@pytest.mark.parametrize(
    ("output", "valid", "date", "future"),
    [
        ("", True, True, 10),
        ("VALID='false'", False, True, 10),
        ("VALID='0'\nDATE='no'\nFUTURE='60'", False, False, 60),
        ("VALID='true'\nFUTURE='soon'", True, True, 10),
    ],
)
def test_the_machine_s_own_rule_for_old_lists(
    scripts: Scripts, output: str, valid: bool, date: bool, future: int
) -> None:
    scripts(apt_config=f'cat <<"E"\n{output}\nE')
    rule = machine_freshness()
    assert (rule.check_valid_until, rule.check_date) == (valid, date)
    assert rule.max_future == dt.timedelta(seconds=future)


def test_the_architecture_has_debian_s_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("platform.machine", lambda: "x86_64")
    assert machine_architecture() == "amd64"


def test_what_apt_would_install_is_read_from_its_simulation(
    tmp_path: Path, scripts: Scripts
) -> None:
    scripts(
        apt_get=f'echo "$@" > {tmp_path}/asked; '
        'echo "Inst libc6 (2.36-9+deb12u13 Debian:12.12/oldstable [amd64])"; '
        'echo "Inst apt (2.6.1 Debian:12.12/oldstable [amd64]) []"; '
        'echo "Conf libc6 (2.36-9+deb12u13 Debian:12.12/oldstable [amd64])"'
    )
    chosen = PrivateApt(tmp_path, codename="bookworm").resolve(["?essential", "apt"])
    assert chosen == (("apt", "2.6.1"), ("libc6", "2.36-9+deb12u13"))
    assert (tmp_path / "asked").read_text().endswith("install ?essential apt\n")
