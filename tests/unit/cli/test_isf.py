"""A symbol file on disk, by the name that was asked for."""

from __future__ import annotations

import gzip
import lzma
from pathlib import Path

import pytest
from typer.testing import CliRunner

from undercroft.base import EnvironmentFault
from undercroft.cli import isf
from undercroft.cli.main import app

CONTENT = b'{"metadata":{}}'


@pytest.fixture(autouse=True)
def _kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(isf, "read_kernel", lambda _: b"vmlinuz")
    monkeypatch.setattr(isf, "load_kernel", lambda data: data)
    monkeypatch.setattr(isf, "write_isf", lambda _: CONTENT)


@pytest.mark.parametrize(
    ("name", "unpack"),
    [("k.json", bytes), ("k.json.xz", lzma.decompress), ("k.json.gz", gzip.decompress)],
)
def test_the_name_says_how_it_is_packed(tmp_path: Path, name: str, unpack: object) -> None:
    written = tmp_path / name
    done = CliRunner().invoke(app, ["reference", "kernel", "linux.deb", "--isf", str(written)])
    assert done.exit_code == 0
    assert callable(unpack)
    assert unpack(written.read_bytes()) == CONTENT


def test_a_folder_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot write"):
        isf.write_symbol_file(Path("linux.deb"), tmp_path / "absent" / "k.json")


def test_something_has_to_be_asked_for() -> None:
    done = CliRunner().invoke(app, ["reference", "kernel", "linux.deb"])
    assert done.exit_code == 2
