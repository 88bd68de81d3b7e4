"""What a process in a Landlock domain can still do with files: tried in one."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.securekernel import landlock

TRY = """
import os, socket, sys
from pathlib import Path
from undercroft.securekernel.landlock import restrict
mine, other = map(Path, sys.argv[1:])
restrict([Path(sys.prefix), Path(sys.base_prefix), Path("/nowhere")], [mine])
try:
    ACTION
except OSError as error:
    print(type(error).__name__)
else:
    print("works")
"""


def tried(action: str, folder: Path) -> str:
    mine, other = folder / "mine", folder / "other"
    for each in (mine, other):
        each.mkdir(exist_ok=True)
        (each / "file").write_text("text")
    done = subprocess.run(
        [sys.executable, "-c", TRY.replace("ACTION", action), str(mine), str(other)],
        capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


needs_landlock = pytest.mark.skipif(landlock.version() == 0, reason="this kernel has no Landlock")


@needs_landlock
@pytest.mark.parametrize(
    "action",
    [
        "other.joinpath('file').read_text()",
        "other.joinpath('file').write_text('more')",
        "other.joinpath('new').write_text('new')",
        "other.joinpath('file').unlink()",
        "mine.joinpath('file').rename(other / 'moved')",
        "list(other.iterdir())",
        "os.execv('/bin/true', ['true'])",
        "Path('/etc/shadow').read_bytes()",
        "os.open('/dev/kmsg', os.O_RDONLY)",
        "mine.joinpath('folder').mkdir()",
    ],
)
def test_what_is_not_left_is_refused(action: str, tmp_path: Path) -> None:
    assert tried(action, tmp_path) in ("PermissionError", "OSError")
    assert (tmp_path / "other" / "file").read_text() == "text"


@needs_landlock
@pytest.mark.parametrize(
    "action",
    [
        "mine.joinpath('file').read_text()",
        "mine.joinpath('file').write_text('more')",
        "mine.joinpath('file').rename(mine / 'moved')",
        "mine.joinpath('file').unlink()",
        "socket.socket(socket.AF_UNIX).bind(str(mine / 'socket'))",
        "import colorsys",
    ],
)
def test_what_is_left_works(action: str, tmp_path: Path) -> None:
    assert tried(action, tmp_path) == "works"


@pytest.mark.parametrize("abi", range(1, 9))
def test_each_version_is_asked_for_what_it_knows(abi: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, tuple[object, ...]]] = []

    def call(number: int, *arguments: object) -> int:
        asked.append((number, arguments))
        return 1000

    monkeypatch.setattr(landlock, "version", lambda: abi)
    monkeypatch.setattr(landlock, "_call", call)
    monkeypatch.setattr("os.close", lambda _: None)
    monkeypatch.setattr(landlock._libc, "prctl", lambda *_: 0)
    landlock.restrict([], [])
    (_, (attributes, size, flags)), restricted = asked
    assert isinstance(attributes, bytes)
    assert (len(attributes), flags) == (size, 0)
    assert size == 8 * (1 + (abi >= 4) + (abi >= 6))
    rights = {1: 13, 2: 14, 3: 15, 4: 15}.get(abi, 16)
    assert int.from_bytes(attributes[:8], "little") == (1 << rights) - 1
    assert restricted == (446, (1000, 0))


def test_a_kernel_without_it_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(landlock, "version", lambda: 0)
    with pytest.raises(EnvironmentFault, match="no Landlock"):
        landlock.restrict([], [])
