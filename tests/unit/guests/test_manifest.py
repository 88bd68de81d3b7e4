"""build.json: what is written is read, and nothing else is."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from undercroft.base import FormatError
from undercroft.guests.manifest import (
    GuestBuild,
    encode_build,
    load_build,
    parse_build,
    save_build,
)
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.model import Grade, Provenance


def test_a_round_trip(build: GuestBuild) -> None:
    provenance = Provenance(Grade.PACKAGE, "p", "1", "o", "aa", "BB", "n")
    package = VerifiedPackage("p", "1", "amd64", Path("/x/p.deb"), "ab" * 32, provenance)
    build = replace(build, packages=(package,))
    folder = build.kernel.path.parent
    save_build(build, folder)
    assert load_build(folder) == build
    assert encode_build(load_build(folder)) == encode_build(build)


def test_a_build_that_moved_is_still_whole(build: GuestBuild, tmp_path: Path) -> None:
    folder = build.kernel.path.parent
    save_build(build, folder)
    moved = folder.rename(tmp_path / "elsewhere")
    assert load_build(moved).is_intact()


def test_a_changed_or_missing_file_is_noticed(build: GuestBuild) -> None:
    assert build.is_intact()
    build.initrd.path.write_bytes(b"another")
    assert not build.is_intact()
    build.initrd.path.unlink()
    assert not build.is_intact()


def _changed(build: GuestBuild, *path: str, value: Any) -> bytes:
    document = json.loads(encode_build(build))
    part = document
    for name in path[:-1]:
        part = part[name]
    part[path[-1]] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("format",), "undercroft.guest-build/9"),
        (("extra",), 1),
        (("kernel", "path"), "../vmlinuz"),
        (("kernel", "path"), "/etc/passwd"),
        (("kernel", "provenance", "grade"), "perfect"),
        (("files",), []),
        (("packages",), [{"name": "x"}]),
    ],
)
def test_anything_else_is_refused(build: GuestBuild, path: tuple[str, ...], value: Any) -> None:
    with pytest.raises(FormatError):
        parse_build(_changed(build, *path, value=value), Path("/folder"))
