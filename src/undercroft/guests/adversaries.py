"""Compiles the test adversaries against the guest kernel's own headers package."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.packages import Archive, VerifiedPackage
from undercroft.packages.unpack import unpack

MAKE_TIMEOUT_S = 300.0
PROGRAMS = "programs"
"""Where the adversaries that are ordinary programs are, under the folder of the modules."""
_NEEDED = re.compile(r"\b(linux-headers-[a-z0-9.+-]+-common|linux-kbuild-[a-z0-9.+-]+)(?=[ ,]|$)")
_LIBELF = re.compile(r"libelf1\w*")

Say = Callable[[str], None]


def _headers_packages(archive: Archive, release: str) -> tuple[VerifiedPackage, ...]:
    """Return the packages whose files compile a module, without installing any."""
    name = f"linux-headers-{release}"
    stanza, _ = archive.find(name)
    needed = [match[1] for match in _NEEDED.finditer(stanza.depends)]
    kbuild = next((n for n in needed if n.startswith("linux-kbuild-")), None)
    if kbuild is None or len(needed) != 2:
        raise EnvironmentFault(f"{name} depends on something unexpected", got=stanza.depends)
    # objtool, which every module goes through, is linked with libelf.
    elf = _LIBELF.search(archive.find(kbuild)[0].depends)
    return archive.fetch_all([name, *needed, *([elf[0]] if elf else [])])


def _headers_tree(archive: Archive, home: Path, release: str, say: Say) -> Path:
    """Return the folder with the unpacked headers, unpacking once."""
    packages = _headers_packages(archive, release)
    root = home / "headers" / f"{packages[0].name}_{packages[0].version}"
    if not root.is_dir():
        say("unpacking kernel headers")
        root.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root.parent, prefix=".new-") as folder:
            new = Path(folder, "tree")
            unpack(packages, new, lambda path: not path.startswith("/usr/share/"))
            new.rename(root)
    return root


def _make(tree: Path, release: str, folder: Path) -> None:
    source = tree / "usr" / "src"
    common = release.removesuffix("-cloud-amd64") + "-common"
    libraries = next(tree.glob("usr/lib/*-linux-gnu"), tree)
    command = [
        # The package's own Makefile names its other half by where it would be installed.
        "make", "-s", "-C", str(source / f"linux-headers-{release}"),
        "-f", str(source / f"linux-headers-{common}" / "Makefile"),
        f"M={folder}", "modules",
        # Debug information would hold this folder's name, and two builds would differ.
        "KCFLAGS=-g0",
    ]  # fmt: skip
    environment = {**os.environ, "LC_ALL": "C.UTF-8", "LD_LIBRARY_PATH": str(libraries)}
    for variable in ("MAKEFLAGS", "MFLAGS", "MAKELEVEL"):
        environment.pop(variable, None)  # of a make that runs us
    _compile(command, environment)


def _compile(command: list[str], environment: Mapping[str, str]) -> None:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, errors="replace", env=environment,
            timeout=MAKE_TIMEOUT_S, check=False, stdin=subprocess.DEVNULL,
        )  # fmt: skip
    except FileNotFoundError as error:
        raise EnvironmentFault(
            f"{command[0]} is not installed", remedy="apt-get install gcc make"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault("compiling the test adversaries did not end") from error
    if done.returncode:
        raise EnvironmentFault(
            "the test adversaries do not compile",
            got="\n".join(done.stderr.splitlines()[-6:]),
            remedy="apt-get install gcc make",
        )


def source_files(sources: Path) -> list[Path]:
    """Return every file that decides what the adversaries are, in a fixed order."""
    return sorted(path for path in sources.rglob("*") if path.is_file())


def source_of(name: str) -> str:
    """Return the source of a built adversary, relative to the folder with the sources."""
    stem = name.removesuffix(".ko")
    return f"{stem}.c" if stem != name else f"{PROGRAMS}/{name}.c"


def _program(source: Path, target: Path) -> bytes:
    """Compile a program that needs no C library and is the same wherever it is compiled."""
    command = [
        "gcc", "-static", "-nostdlib", "-ffreestanding", "-Os", "-s", "-fno-pie", "-no-pie",
        "-fno-stack-protector", "-fno-asynchronous-unwind-tables", "-Wl,--build-id=none",
        "-o", str(target), str(source),
    ]  # fmt: skip
    _compile(command, {**os.environ, "LC_ALL": "C.UTF-8"})
    return target.read_bytes()


def build_adversaries(
    archive: Archive, home: Path, release: str, sources: Path, *, say: Say = lambda _text: None
) -> dict[str, bytes]:
    """Return the modules (``hide_task.ko``), built for ``release``, and the programs, by name.

    Needs gcc and make on this machine; everything else comes from verified packages that are
    unpacked under ``home/headers``.
    """
    tree = _headers_tree(archive, home, release, say)
    say("compiling test adversaries")
    with tempfile.TemporaryDirectory(prefix="undercroft-modules-") as name:
        folder = Path(name)
        for path in [*sources.glob("*.[ch]"), sources / "Kbuild"]:
            shutil.copy(path, folder)
        _make(tree, release, folder)
        built = {path.name: path.read_bytes() for path in sorted(folder.glob("*.ko"))}
        for path in sorted((sources / PROGRAMS).glob("*.c")):
            built[path.stem] = _program(path, folder / path.stem)
    return built
