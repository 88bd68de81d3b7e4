"""``undercroft reference packages``: every file of signed packages, as references for IMA."""

from __future__ import annotations

import datetime as dt
import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError, JsonValue
from undercroft.cli.guest import progress
from undercroft.formats.ima import LinuxHash, escape_path
from undercroft.packages import Archive
from undercroft.packages.advisories import Advisory, parse_advisories
from undercroft.packages.archive import Refresh
from undercroft.packages.filelist import merged_path
from undercroft.packages.fileset import (
    FileSet,
    build_file_set,
    every_package,
    updated,
    with_dependencies,
)
from undercroft.packages.filestore import FileStore, Wanted, parse_installed
from undercroft.reference.archive import FileArchive, FileRow
from undercroft.reference.archive_build import ima_path
from undercroft.reference.model import ReferenceSet, merge
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.service.casefile import read_part

app = typer.Typer(
    name="packages",
    help="Derive the digest of every file from signed packages.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
APT_CACHE = Path("/var/cache/apt/archives")
SHOWN = 20

_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Advisories = Annotated[
    list[Path] | None,
    typer.Option(
        "--advisories",
        metavar="FILE",
        help="Debian's DSA list or security tracker export; may be given again.",
    ),
]
_Refresh = Annotated[Refresh, typer.Option(help="When to fetch new package lists.")]
_Set = Annotated[Path, typer.Argument(metavar="SET", help="A reference set with packages.")]


@app.callback()
def _group() -> None:
    """Derive the digest of every file from signed packages."""


@app.command()
def build(
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the set.")
    ],
    packages: Annotated[
        list[str] | None, typer.Argument(metavar="[PACKAGE]...", help="Names, or name=version.")
    ] = None,
    installed: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="A machine's /var/lib/dpkg/status: all that is installed there."
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every package of the release: some 100 GB to fetch.")
    ] = False,
    dependencies: Annotated[
        bool, typer.Option("--dependencies", help="And what the packages depend on.")
    ] = False,
    advisories: _Advisories = None,
    name: Annotated[str, typer.Option(help="The set's name.")] = "packages",
    algorithm: Annotated[str, typer.Option(help="IMA's hash in the guest (ima_hash=).")] = "sha256",
    refresh: _Refresh = Refresh.AUTO,
    as_json: _Json = False,
) -> None:
    """Make a set of the files of packages, each with its chain to the archive's signature.

    Versions that a newer one has replaced, or that lack a security update, are marked.
    """
    archive, store = _archive(refresh), _store(algorithm)
    wanted = {Wanted(*text.partition("=")[::2]) for text in packages or ()}
    if installed is not None:
        wanted |= set(parse_installed(_text(installed)))
    with progress("listing packages") as show:
        if everything:
            wanted |= set(every_package(archive))
        if dependencies:
            wanted = set(with_dependencies(archive, wanted))
        if not wanted:
            raise EnvironmentFault("no packages are named", remedy="name some, or --installed FILE")
        found = build_file_set(
            name, archive, store, wanted, advisories=_advisories(advisories), say=show.say,
            discard=everything,
        )  # fmt: skip
    _finish(found, found.references, output, as_json=as_json)


@app.command()
def update(
    references: _Set,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write it; else in place."),
    ] = None,
    advisories: _Advisories = None,
    refresh: _Refresh = Refresh.ALWAYS,
    as_json: _Json = False,
) -> None:
    """Add the versions of today to a set, and mark those that are not of today any more.

    Do it before a guest upgrades: then what it installs is known, and what it still runs stays
    known until it boots again.
    """
    old = _read_set(references)
    tables = _open_tables(old)
    archive = _archive(refresh)
    store = FileStore(wiring.reference_home(), tables[0].algorithm)
    with progress("listing packages") as show:
        found = build_file_set(
            old.name, archive, store, updated(tables, archive),
            advisories=_advisories(advisories), say=show.say,
        )  # fmt: skip
    rest = ReferenceSet(old.name, old.events, old.pcrs, old.files, old.kernels)
    whole = merge(old.name, (rest, found.references))
    _finish(found, whole, output or references, as_json=as_json)


@app.command()
def query(
    references: _Set,
    what: Annotated[str, typer.Argument(metavar="PATH|DIGEST|PACKAGE", help="What to look for.")],
    as_json: _Json = False,
) -> None:
    """Say what a set knows of a path, a content (hexadecimal digest) or a package.

    Exit status 4 if it knows nothing.
    """
    known = _read_set(references)
    tables = _open_tables(known)
    rows = [row for table in tables for row in _rows(table, what)]
    states = {(state.package, state.version): state for state in known.states}
    told: list[JsonValue] = []
    for row in rows:
        record = row.record
        state = states.get((record.package, record.version))
        told.append(
            {
                "path": escape_path(row.path),
                "digest": row.digest.hex(),
                "package": record.package,
                "version": record.version,
                "origin": record.origin,
                "release_sha256": record.release_sha256,
                "signer": record.signer,
                "superseded": _day(state.superseded) if state and state.superseded else None,
                "successor": state.successor if state else None,
                "advisories": list(state.advisories) if state else [],
            }
        )
    if as_json:
        sys.stdout.write(json.dumps(told, indent=1) + "\n")
    else:
        for row in rows:
            state = states.get((row.record.package, row.record.version))
            grade = "current"
            if state is not None:
                grade = f"superseded since {_day(state.superseded)} by {state.successor}"
                grade += "".join(f"; lacks {name}" for name in state.advisories)
            sys.stdout.write(
                f"{row.digest.hex()}  {escape_path(row.path)}\n"
                f"    {row.record.provenance} ({grade})\n    {row.record.origin}, "
                f"Release {row.record.release_sha256[:16]}, signed by {row.record.signer}\n"
            )
    if not rows:
        sys.stderr.write(f"{what}: not in {known.name}\n")
        raise typer.Exit(4)


def _rows(table: FileArchive, what: str) -> list[FileRow]:
    if what.startswith("/"):
        return list(table.at_path(ima_path(merged_path(what))))
    if len(what) == 2 * table.algorithm.size and set(what) <= set("0123456789abcdef"):
        return list(table.with_digest(bytes.fromhex(what), 1000))
    numbers = [n for n, record in enumerate(table.records()) if record.package == what]
    rows = (n for n, package in enumerate(table.row_package.tolist()) if package in numbers)
    return sorted(map(table.row, rows), key=lambda row: row.path)


def _day(seconds: int) -> str:
    return dt.datetime.fromtimestamp(seconds, dt.UTC).strftime("%Y-%m-%d")


def _archive(refresh: Refresh) -> Archive:
    return Archive(
        wiring.home() / "apt", now=dt.datetime.now(dt.UTC), refresh=refresh, also=[APT_CACHE]
    )


def _store(algorithm: str) -> FileStore:
    found = LinuxHash.from_name(algorithm.encode())
    if found is None or found.algorithm is None:
        raise EnvironmentFault("not a hash that we compute", where="--algorithm", got=algorithm)
    return FileStore(wiring.reference_home(), found)


def _text(path: Path) -> str:
    try:
        return read_part(path).decode()
    except UnicodeDecodeError as error:
        raise FormatError(str(path), error.start, "not UTF-8 text") from error


def _advisories(paths: list[Path] | None) -> list[Advisory]:
    return [one for path in paths or () for one in parse_advisories(read_part(path))]


def _read_set(path: Path) -> ReferenceSet:
    return parse_reference_set(read_part(path))


def _open_tables(references: ReferenceSet) -> list[FileArchive]:
    if not references.archives:
        raise EnvironmentFault("the set has no packages in it", where=references.name)
    return list(wiring.open_tables(references))


def _finish(found: FileSet, whole: ReferenceSet, output: Path, *, as_json: bool) -> None:
    data = encode_reference_set(whole)
    try:
        output.write_bytes(data)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(output)) from error
    states, table = whole.states, found.table
    summary: dict[str, JsonValue] = {
        "set": whole.name,
        "table": table.id.hex(),
        "packages": table.packages,
        "paths": table.paths,
        "superseded": sum(1 for state in states if state.superseded),
        "vulnerable": sum(1 for state in states if state.advisories),
        "missing": [str(one) for one in found.missing],
    }
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
        return
    sys.stdout.write(
        f"{output}: {table.paths} paths of {table.packages} packages, "
        f"{summary['superseded']} superseded, {summary['vulnerable']} known vulnerable\n"
    )
    if found.missing:
        more = f" and {len(found.missing) - SHOWN} more" if len(found.missing) > SHOWN else ""
        names = ", ".join(map(str, found.missing[:SHOWN]))
        sys.stdout.write(f"  offered by no archive now, and not listed earlier: {names}{more}\n")
