"""The manifest that a launch measures: everything that a secure kernel process executes.

One line for each component, sorted, after a line that names the format::

    undercroft secure kernel manifest 1
    distribution numpy 2.3.1 sha256:…
    interpreter 3.11.7 sha256:…
    library libc.so.6 sha256:…
    package undercroft sha256:…
    stdlib 3.11 sha256:…

A single file's digest is its SHA-256.  A tree's is the SHA-256 of what
``find . -type f … | LC_ALL=C sort | xargs sha256sum`` prints for it (``<hex>  ./<path>`` lines), so
that anyone can compute it again.  Compiled byte code (``__pycache__``) is left out: run the secure
kernel with ``-X pycache_prefix`` where it must not be trusted.

Run as ``python -m undercroft.securekernel.vtpm.manifest FILE``.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

import undercroft
from undercroft.base import EnvironmentFault

FORMAT = "undercroft secure kernel manifest 1"
PACKAGES = ("base", "formats", "reference", "securekernel")
"""The packages of undercroft that a secure kernel process may import (see .importlinter)."""

DISTRIBUTIONS = (
    "capstone", "cbor2", "lz4", "msgspec", "numpy", "typing_extensions", "zstandard",
)  # fmt: skip
"""The distributions that those packages may import; one that is absent is measured as such."""

_NOT_STDLIB = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})


def file_digest(path: Path) -> str:
    """Return a file's SHA-256 in hex.  Raises EnvironmentFault if it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as fault:
        raise EnvironmentFault(f"cannot be measured: {fault}", where=str(path)) from fault


def tree_digest(root: Path, files: Iterable[Path]) -> str:
    """Return the digest of ``files``, which are below ``root``; see the module's description.

    Raises EnvironmentFault if there is none: an empty tree proves nothing.
    """
    names = sorted(os.fsencode(f"./{file.relative_to(root)}") for file in files)
    if not names:
        raise EnvironmentFault("nothing to measure", where=str(root))
    state = hashlib.sha256()
    for name in names:
        digest = file_digest(root / os.fsdecode(name))
        state.update(digest.encode() + b"  " + name + b"\n")
    return state.hexdigest()


def files_below(root: Path, *, skip: frozenset[str]) -> Iterator[Path]:
    """Yield the regular files below ``root``, without folders whose name is in ``skip``."""
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in skip]
        yield from (Path(folder) / name for name in names)


def mapped_libraries(maps: str) -> set[Path]:
    """Return the files of the executable mappings in the text of /proc/self/maps."""
    paths = set()
    for line in maps.splitlines():
        fields = line.split(maxsplit=5)
        if len(fields) == 6 and "x" in fields[1] and fields[5].startswith("/"):
            paths.add(Path(fields[5]))
    return paths


def _distribution(name: str) -> tuple[str, Path, list[Path]] | None:
    try:
        distribution = importlib.metadata.distribution(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    root = Path(str(distribution.locate_file(""))).resolve()
    files = [
        root / entry
        for entry in distribution.files or []
        if ".dist-info" not in str(entry) and entry.suffix != ".pyc" and ".." not in entry.parts
    ]
    return distribution.version, root, [file for file in files if file.is_file()]


def build() -> bytes:
    """Return this machine's manifest.  Raises EnvironmentFault if a part cannot be read."""
    lines = []
    covered: set[Path] = set()
    for name in DISTRIBUTIONS:
        found = _distribution(name)
        if found is None:
            lines.append(f"distribution {name} absent")
            continue
        version, root, files = found
        covered.update(file.resolve() for file in files)
        lines.append(f"distribution {name} {version} sha256:{tree_digest(root, files)}")
        importlib.import_module(name)  # so that the libraries it needs are mapped
    interpreter = Path(sys.executable).resolve()
    version = ".".join(map(str, sys.version_info[:3]))
    lines.append(f"interpreter {version} sha256:{file_digest(interpreter)}")
    stdlib = Path(sysconfig.get_path("stdlib")).resolve()
    covered.update(files_below(stdlib, skip=_NOT_STDLIB), [interpreter])
    lines.append(
        f"stdlib {sysconfig.get_python_version()} "
        f"sha256:{tree_digest(stdlib, files_below(stdlib, skip=_NOT_STDLIB))}"
    )
    lines.append(f"package undercroft sha256:{_own_digest()}")
    libraries = mapped_libraries(Path("/proc/self/maps").read_text()) - covered
    lines += {f"library {path.name} sha256:{file_digest(path)}" for path in libraries}
    return "\n".join([FORMAT, *sorted(lines), ""]).encode()


def _own_digest() -> str:
    (location,) = undercroft.__path__
    root = Path(location).resolve()
    skip = frozenset({"__pycache__"})
    files = [root / "__init__.py"]
    for package in PACKAGES:
        files += files_below(root / package, skip=skip)
    return tree_digest(root, files)


def main(argv: list[str] | None = None) -> int:
    """Write the manifest to the file named, or to standard output."""
    arguments = sys.argv[1:] if argv is None else argv
    manifest = build()
    if arguments:
        Path(arguments[0]).write_bytes(manifest)
    else:
        sys.stdout.write(manifest.decode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
