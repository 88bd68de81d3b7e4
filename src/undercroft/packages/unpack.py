"""Packages unpacked into a folder of ours, without root and without leaving it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from undercroft.base import FormatError
from undercroft.packages.deb import DebEntry, EntryKind, read_deb
from undercroft.packages.verified import VerifiedPackage


def unpack(
    packages: Iterable[VerifiedPackage],
    root: Path,
    wanted: Callable[[str], bool] = lambda _path: True,
) -> None:
    """Write what ``wanted`` accepts by path of ``packages`` under the new folder ``root``.

    Links are made last, after every file is written, so that no write can go through a link;
    ownership and special mode bits are dropped.  Raises FormatError for two entries in one place.
    """
    root.mkdir(parents=True)
    links: list[DebEntry] = []
    for package in packages:
        for entry in read_deb(package.path.read_bytes(), wanted):
            target = root / entry.path[1:]
            if entry.kind is EntryKind.DIRECTORY:
                target.mkdir(parents=True, exist_ok=True)
            elif entry.kind is EntryKind.FILE:
                target.parent.mkdir(parents=True, exist_ok=True)
                _write(target, entry)
            else:
                links.append(entry)
    for entry in sorted(links, key=lambda link: link.kind is EntryKind.SYMLINK):
        _link(root, entry)


def _link(root: Path, entry: DebEntry) -> None:
    place = root / entry.path[1:]
    inside = place.parent.relative_to(root)
    if (root.resolve() / inside) != place.parent.resolve():
        raise FormatError("deb", 0, "an entry lies behind a link", got=entry.path)
    place.parent.mkdir(parents=True, exist_ok=True)
    try:
        if entry.kind is EntryKind.HARDLINK:
            place.hardlink_to(root / entry.target[1:])
        else:
            place.symlink_to(entry.target)
    except FileExistsError as error:
        raise FormatError("deb", 0, "a link's place is taken", got=entry.path) from error
    except FileNotFoundError as error:
        raise FormatError("deb", 0, "a hard link to nothing", got=entry.path) from error


def _write(target: Path, entry: DebEntry) -> None:
    try:
        with target.open("xb") as stream:
            stream.write(entry.data)
    except FileExistsError as error:
        raise FormatError("deb", 0, "two packages have one file", got=entry.path) from error
    target.chmod(0o755 if entry.mode & 0o100 else 0o644)
