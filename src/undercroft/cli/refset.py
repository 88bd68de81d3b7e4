"""``undercroft reference learn|merge|export|import``: sets from and for elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.appraise.learn import learn as learn_values
from undercroft.appraise.pipeline import judge_of, verify_evidence
from undercroft.base import EnvironmentFault, Grade, JsonValue
from undercroft.cli.verify import load_saved_case
from undercroft.reference.archive_build import ima_path
from undercroft.reference.corim import encode_reference_corim, parse_reference_corim
from undercroft.reference.keylime import encode_runtime_policy, parse_runtime_policy
from undercroft.reference.model import Provenance, ReferenceSet
from undercroft.reference.model import merge as merge_sets
from undercroft.reference.pcrlock import pcrlock_components
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.service.casefile import read_part

CORIM, KEYLIME, PCRLOCK = "corim", "keylime", "pcrlock"
_Output = Annotated[Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write it.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
_Note = Annotated[str, typer.Option(help="Where the values come from: it stands in each of them.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to ``undercroft reference``."""
    app.command("learn")(learn)
    app.command("merge")(merge)
    app.command("export")(export)
    app.command("import")(import_)


def learn(
    case: Annotated[Path, typer.Argument(help="Saved evidence of a machine that is trusted now.")],
    output: _Output,
    as_json: _Json = False,
) -> None:
    """Learn what a machine shows and no reference speaks of, beside what is known of it.

    Every value is marked as observed, which the default policy does not affirm. What contradicts
    a known value is not learned but listed; exit status 3 if there is such a thing.
    """
    loaded = load_saved_case(case)
    verified = verify_evidence(loaded.evidence, loaded.trust, loaded.challenge, last=loaded.last)
    judge = judge_of(loaded.references, loaded.policy, loaded.tables)
    learned = learn_values(verified, loaded.references, judge, int(time.time()))
    new = learned.references
    whole = merge_sets(new.name, (loaded.references, new))
    _write(output, encode_reference_set(whole))
    summary: dict[str, JsonValue] = {
        "files": sum(map(len, new.files.values())),
        "pcrs": sorted(new.pcrs),
        "contradicting": list(learned.contradicting),
    }
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=1) + "\n")
    else:
        pcrs = ", ".join(map(str, sorted(new.pcrs))) or "none"
        sys.stdout.write(f"{output}: learned {summary['files']} files, PCR {pcrs}\n")
        for what in learned.contradicting:
            sys.stdout.write(f"  not learned, it contradicts what is known: {what}\n")
    if learned.contradicting:
        raise typer.Exit(3)


def merge(
    sets: Annotated[list[Path], typer.Argument(metavar="SET...", help="Reference sets.")],
    output: _Output,
    name: Annotated[str, typer.Option(help="The name of the whole.")] = "",
) -> None:
    """Put sets that describe one machine together: its boot, its packages, before and after."""
    parts = [_read(path) for path in sets]
    whole = merge_sets(name or " + ".join(part.name for part in parts), parts)
    _write(output, encode_reference_set(whole))


def export(
    references: Annotated[Path, typer.Argument(metavar="SET", help="A reference set.")],
    output: _Output,
    form: Annotated[
        str, typer.Option("--to", help=f"{CORIM}, {KEYLIME} (files) or {PCRLOCK} (a folder).")
    ] = CORIM,
) -> None:
    """Write a set in a form that others read."""
    known = _read(references)
    try:
        if form == CORIM:
            _write(output, encode_reference_corim(known))
        elif form == KEYLIME:
            _write(output, encode_runtime_policy(_files(known)))
        elif form == PCRLOCK:
            for name, data in pcrlock_components(known).items():
                (output / name).parent.mkdir(parents=True, exist_ok=True)
                _write(output / name, data)
        else:
            raise EnvironmentFault("not a form that we write", where="--to", got=form)
    except ValueError as error:
        raise EnvironmentFault(str(error), where=str(references)) from error


def import_(
    source: Annotated[Path, typer.Argument(help="A CoRIM, or a Keylime runtime policy.")],
    output: _Output,
    form: Annotated[str, typer.Option("--from", help=f"{CORIM} or {KEYLIME}.")] = CORIM,
    note: _Note = "imported",
    grade: Annotated[Grade, typer.Option(help="How the values became known.")] = Grade.OBSERVED,
) -> None:
    """Read reference values that others wrote. Whoever supplies them is believed."""
    data, provenance = read_part(source), Provenance(grade, note=note)
    if form == CORIM:
        _write(output, encode_reference_set(parse_reference_corim(data, provenance)))
        return
    if form != KEYLIME:
        raise EnvironmentFault("not a form that we read", where="--from", got=form)
    policy = parse_runtime_policy(data, source.stem, provenance)
    _write(output, encode_reference_set(policy.references))
    sys.stdout.write(f"{output}: {len(policy.references.files)} paths\n")
    for pattern in policy.excludes:
        sys.stdout.write(f"  for a person to put into files.exclude: {pattern}\n")
    for part in policy.left_out:
        sys.stdout.write(f"  left out: {part}\n")


def _files(references: ReferenceSet) -> Iterator[tuple[bytes, bytes]]:
    for path, values in references.files.items():
        for value in values:
            for digest in value.digests:
                yield ima_path(path), digest.value
    for table in wiring.open_tables(references):
        for index in range(len(table)):
            row = table.row(index)
            yield row.path, row.digest


def _read(path: Path) -> ReferenceSet:
    return parse_reference_set(read_part(path))


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(path)) from error
