"""``undercroft ima``: look into IMA measurement lists, replay them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from undercroft.base import EnvironmentFault, FormatError, HashAlgorithm, JsonValue
from undercroft.cli import exit_status
from undercroft.formats.ima import (
    ImaEntry,
    ImaList,
    decode_buffer,
    describe_buffer,
    detect,
    parse_ascii,
    parse_binary,
    parse_signature,
)
from undercroft.verify.ima import BOOT_AGGREGATE
from undercroft.verify.ima_walk import check_template_hashes, replay_pcrs

app = typer.Typer(
    name="ima",
    help="Look into IMA measurement lists, replay them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

MAX_LIST_SIZE = 1 << 30
"""The largest list that is read: some seven million entries."""

_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="A measurement list, binary or ASCII, such as "
        "/sys/kernel/security/ima/binary_runtime_measurements.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def show(file: _File, as_json: _Json = False) -> None:
    """Show every entry, decoded."""
    measurements, form = _load(file)
    if as_json:
        entries: list[JsonValue] = [entry_json(entry) for entry in measurements]
        _print_json({"form": form, "entries": entries})
        return
    out = [f"{file}: {form}, {len(measurements)} entries"]
    for entry in measurements:
        out.append(f"{entry.index:6}  PCR {entry.pcr:<2}  {_line(entry)}")
        out += [f"        {name}: {text}" for name, text in _more(entry).items()]
    sys.stdout.write("\n".join(out) + "\n")


@app.command()
def replay(
    file: _File,
    bank: Annotated[
        str, typer.Option("--bank", help="The PCR bank: sha1, sha256, sha384, sha512, ...")
    ] = "sha256",
    as_json: _Json = False,
) -> None:
    """Print the PCR values that a list leads to, and what is odd about it.

    Nothing is verified: only a quote over these PCRs makes the list believable.  Ends with exit
    status 5 if a template hash is not that of its entry: the list was changed.
    """
    algorithm = HashAlgorithm.from_name(bank)
    if algorithm is None:
        known = ", ".join(str(a) for a in HashAlgorithm)
        raise typer.BadParameter(f"{bank} is not one of {known}", param_hint="--bank")
    measurements, form = _load(file)
    found = replay_json(measurements, algorithm)
    if as_json:
        _print_json({"form": form, **found})
    else:
        _print_replay(measurements, algorithm, found)
    if found["wrong-template-hashes"]:
        raise typer.Exit(exit_status.NOT_AUTHENTIC)


def _print_replay(
    measurements: ImaList, algorithm: HashAlgorithm, found: dict[str, JsonValue]
) -> None:
    values = replay_pcrs(measurements, algorithm)
    out = [f"{algorithm}:", *[f"  {pcr:2}  {value.hex()}" for pcr, value in values.items()]]
    out.append(f"{len(measurements)} entries, {len(measurements.violations())} violations")
    wrong = found["wrong-template-hashes"]
    if wrong:
        out.append(f"template hashes that are not those of their entries: {wrong}")
    sys.stdout.write("\n".join(out) + "\n")


def replay_json(measurements: ImaList, bank: HashAlgorithm) -> dict[str, JsonValue]:
    """Return a replay as the JSON object that ``ima replay --json`` prints."""
    values = replay_pcrs(measurements, bank)
    return {
        "pcrs": {bank.label: {str(pcr): value.hex() for pcr, value in values.items()}},
        "entries": len(measurements),
        "violations": list(measurements.violations()),
        "wrong-template-hashes": list(check_template_hashes(measurements)),
        "boot-aggregates": [e.index for e in measurements if e.name == BOOT_AGGREGATE],
    }


def entry_json(entry: ImaEntry) -> dict[str, JsonValue]:
    """Return an entry as JSON: names escaped for people, everything else in hexadecimal."""
    return {
        "index": entry.index,
        "pcr": entry.pcr,
        "template": entry.template.name.decode(),
        "violation": entry.is_violation,
        "template-hash": entry.claimed_template_hash.hex(),
        "path": entry.path,
        "digest": str(entry.digest) if entry.digest else None,
        "fields": {name: value.hex() for name, value in entry.fields().items()},
        **_more(entry),
    }


def _line(entry: ImaEntry) -> str:
    if entry.is_violation:
        return f"{entry.template.name.decode()}  VIOLATION (claimed)  {entry.path}"
    digest = str(entry.digest) if entry.digest else "no digest"
    return f"{entry.template.name.decode()}  {digest}  {entry.path}"


def _more(entry: ImaEntry) -> dict[str, str]:
    """Return what a buffer or signature of the entry says."""
    fields = entry.fields()
    said = {}
    if "buf" in fields:
        said["buffer"] = describe_buffer(decode_buffer(entry.name, fields["buf"]))
    for name in ("sig", "evmsig"):
        if fields.get(name):
            said[name + "-says"] = _signature(fields[name])
    return said


def _signature(data: bytes) -> str:
    try:
        signature = parse_signature(data)
    except FormatError as error:
        return str(error)
    return (
        f"{signature.type.name} version {signature.version}, {signature.hash_algorithm}, "
        f"key {signature.claimed_key_id.hex()} (claimed)"
    )


def _load(file: Path) -> tuple[ImaList, str]:
    try:
        with file.open("rb") as stream:
            data = stream.read(MAX_LIST_SIZE + 1)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read the measurement list: {error.strerror}",
            where=str(file),
            remedy="name a readable file; the kernel's own list needs root",
        ) from error
    if len(data) > MAX_LIST_SIZE:
        raise FormatError("IMA measurement list", MAX_LIST_SIZE, "the list is too large")
    form = detect(data)
    parse = parse_ascii if form.is_ascii else parse_binary
    measurements = parse(data, hash_algorithm=form.hash_algorithm, order=form.order)
    kind = "ASCII" if form.is_ascii else f"binary, {form.order}-endian"
    return measurements, f"{kind}, {form.hash_algorithm} template hashes"


def _print_json(value: dict[str, JsonValue]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
