from __future__ import annotations

import stat
from pathlib import Path

import pytest

from undercroft.securekernel.vtpm.keyfile import KeyFile, LaunchedKey
from undercroft.securekernel.vtpm.keys import KeyType

KEYS = {KeyType.ECC: LaunchedKey(b"public", b"name", b"context")}


def test_keys_come_back_from_a_file_of_its_owners(tmp_path: Path) -> None:
    file = KeyFile(tmp_path / "keys")
    file.save({})
    file.save(KEYS)
    assert file.load() == KEYS
    assert stat.S_IMODE((tmp_path / "keys").stat().st_mode) == 0o600
    assert [path.name for path in tmp_path.iterdir()] == ["keys"]


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        '{"ecc": {}}',
        '{"ecc": 1}',
        '{"dsa": {"public": "", "name": "", "context": ""}}',
        '{"ecc": {"public": "xx", "name": "", "context": ""}}',
    ],
)
def test_anything_else_is_no_key(tmp_path: Path, content: str) -> None:
    (tmp_path / "keys").write_text(content)
    assert KeyFile(tmp_path / "keys").load() == {}


def test_no_file_is_no_key(tmp_path: Path) -> None:
    assert KeyFile(tmp_path / "none").load() == {}
