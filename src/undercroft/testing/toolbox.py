"""Ordinary programs of this machine, with their libraries, to be run in the micro guest.

What the guest's own initramfs has is from verified packages; this is not, and is for tests only.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests.build import write
from undercroft.guests.cpio import CpioEntry, directory, file, write_cpio
from undercroft.guests.manifest import GuestBuild
from undercroft.packages import read_deb
from undercroft.reference.model import Grade, Provenance

_LIBRARY = re.compile(r"(?:=> )?(/\S+) \(0x")
_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")
MODULES = "/modules"
"""Where kernel modules are, numbered in the order in which they can be loaded."""


def libraries_of(paths: Iterable[Path]) -> set[Path]:
    """Return every shared library that these programs and libraries load at their start."""
    found: set[Path] = set()
    for path in paths:
        done = subprocess.run(["ldd", str(path)], capture_output=True, text=True, check=False)
        found.update(Path(name) for name in _LIBRARY.findall(done.stdout))
    return found


def bundle(
    programs: Iterable[str],
    *,
    plugins: Iterable[str] = (),
    trees: Mapping[Path, str] | None = None,
    files: Mapping[str, bytes] | None = None,
) -> list[CpioEntry]:
    """Return programs (found in PATH), with all that they load, where they are on this machine.

    ``plugins`` are libraries, by path, that programs load while they run.  ``trees`` are folders
    and where they go; ``files`` (mode 0755) is what else there is.  Raises EnvironmentFault if a
    program or plugin is not installed.
    """
    wanted: set[Path] = set()
    for name in programs:
        path = shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin:/sbin:/lib/systemd")
        if path is None:
            raise EnvironmentFault("not installed", where=name)
        wanted.add(Path(path))
    for name in plugins:
        if not Path(name).exists():
            raise EnvironmentFault("not installed", where=name)
        wanted.add(Path(name))
    for source in trees or {}:
        wanted.update(source.rglob("*.so"))
    kept = wanted | libraries_of(wanted)
    inside = {path for path in kept if any(path.is_relative_to(tree) for tree in trees or {})}
    entries = {str(path): file(str(path), path.read_bytes(), mode=0o755) for path in kept - inside}
    for source, place in (trees or {}).items():
        entries |= _tree(source, place)
    entries |= {path: file(path, data, mode=0o755) for path, data in (files or {}).items()}
    return list(entries.values())


_LEFT_OUT = frozenset({"__pycache__", "test", "tests", "idlelib", "lib2to3", "ensurepip"})


def _tree(source: Path, place: str) -> dict[str, CpioEntry]:
    entries: dict[str, CpioEntry] = {}
    for path in source.rglob("*"):
        relative = path.relative_to(source)
        name = f"{place}/{relative}"
        if _LEFT_OUT & {*relative.parts} or relative.parts[0].startswith("config-"):
            continue
        if path.is_symlink() and not path.exists():
            continue
        if path.is_dir():
            entries[name] = directory(name)
        else:
            entries[name] = file(name, path.read_bytes(), mode=0o755)
    return entries


def modules(image: Path, names: Iterable[str]) -> list[CpioEntry]:
    """Return kernel modules of the package ``image`` and what they need, in loading order."""
    found = {
        Path(entry.path).stem.replace("-", "_"): entry.data
        for entry in read_deb(image.read_bytes(), lambda path: path.endswith(".ko"))
    }
    order: list[str] = []

    def add(name: str) -> None:
        if name in order:
            return
        if name not in found:
            raise EnvironmentFault("no such module", where=name)
        depends = _DEPENDS.search(found[name])
        for need in depends[1].decode().split(",") if depends else ():
            if need:
                add(need.replace("-", "_"))
        order.append(name)

    for name in names:
        add(name.replace("-", "_"))
    return [
        file(f"{MODULES}/{number:02}-{name}.ko", found[name]) for number, name in enumerate(order)
    ]


def with_toolbox(build: GuestBuild, entries: Iterable[CpioEntry], folder: Path) -> GuestBuild:
    """Return ``build`` with ``entries`` behind its initramfs; the kernel unpacks both."""
    both = build.initrd.path.read_bytes()
    both += bytes(-len(both) % 512) + write_cpio(entries)
    origin = Provenance(Grade.BUILT, note="the micro guest and programs of the test machine")
    return replace(build, initrd=write(folder / "initrd-toolbox", both, origin))
