"""``undercroft eventlog``: look into TCG event logs, replay them, compare them."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from undercroft.base import EnvironmentFault, JsonValue
from undercroft.cli.exit_status import USAGE
from undercroft.formats.eventlog import MAX_LOG_SIZE, EventLog, LogFormat, parse_eventlog
from undercroft.formats.eventlog.asjson import event_json
from undercroft.formats.eventlog.words import (
    CHECK_WORDS,
    describe,
    register_name,
    shortened,
)
from undercroft.verify.eventlog import ReplayedPcrs, replay_eventlog
from undercroft.verify.eventlog_diff import Change, diff_eventlogs

app = typer.Typer(
    name="eventlog",
    help="Look into TCG event logs, replay them, compare them.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_File = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="An event log, such as /sys/kernel/security/tpm0/binary_bios_measurements.",
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.command()
def show(file: _File, as_json: _Json = False) -> None:
    """Show every event, decoded, and what its digest proves of it."""
    log = _load(file)
    if as_json:
        _print_json({**_head(log), "events": [event_json(event) for event in log.events]})
        return
    out = [f"{file}: {_KINDS[log.format]}, {len(log.events)} events"]
    for event in log.events:
        first, *rest = describe(event)
        where = register_name(event.pcr, log.format)
        out.append(f"{event.index:4}  {where:8}  {event.type_name}")
        out += [f"      {first}", *[f"        {line}" for line in rest]]
        out.append(f"      ({CHECK_WORDS[event.check]})")
    sys.stdout.write("\n".join(out) + "\n")


@app.command()
def replay(file: _File, as_json: _Json = False) -> None:
    """Print the PCR values that a log leads to, and the quirks that it shows.

    Nothing is verified: only a quote over these PCRs makes the log believable.
    """
    replayed = replay_eventlog(_load(file))
    if as_json:
        _print_json(replay_json(replayed))
        return
    out = []
    for algorithm, bank in replayed.banks.items():
        out.append(f"{algorithm}:")
        out += [f"  {pcr:2}  {value.hex()}" for pcr, value in bank.values.items()]
    out += [f"{name}: not replayed: {why}" for name, why in replayed.left_out.items()]
    out.append(f"{replayed.events} events; PCR 0 starts at locality {replayed.startup_locality}")
    for fired in replayed.quirks:
        at = f" (events {', '.join(map(str, fired.events))})" if fired.events else ""
        out.append(f"quirk {fired.quirk.id}: {fired.quirk.summary}{at}")
    sys.stdout.write("\n".join(out) + "\n")


@app.command()
def diff(
    before: Annotated[Path, typer.Argument(metavar="A", help="The event log of one boot.")],
    after: Annotated[Path, typer.Argument(metavar="B", help="The event log of another.")],
    as_json: _Json = False,
) -> None:
    """Say in words what changed from one boot to another."""
    try:
        found = diff_eventlogs(_load(before), _load(after))
    except ValueError as error:
        sys.stderr.write(f"undercroft: {error}\n")
        raise typer.Exit(USAGE) from None
    if as_json:
        changes = [_change_json(change) for change in found.changes]
        _print_json({"changes": changes, "same": list(found.same)})
        return
    out = []
    for change in found.changes:
        out += [change.words, *[f"    {line}" for line in shortened(change.details)]]
    same = ", ".join(map(str, found.same)) or "none"
    out.append(f"{len(found.changes)} changes; PCRs measured alike: {same}")
    sys.stdout.write("\n".join(out) + "\n")


_KINDS = {
    LogFormat.TCG_1_2: "TCG event log with SHA-1 digests (TPM 1.2 format)",
    LogFormat.CRYPTO_AGILE: "TCG event log, crypto agile",
    LogFormat.CCEL: "confidential computing event log (CCEL)",
}


def replay_json(replayed: ReplayedPcrs) -> dict[str, JsonValue]:
    """Return a replay as the JSON object that ``eventlog replay --json`` prints."""
    banks: dict[str, JsonValue] = {
        str(algorithm): {str(pcr): value.hex() for pcr, value in bank.values.items()}
        for algorithm, bank in replayed.banks.items()
    }
    quirks = [fired.quirk.id for fired in replayed.quirks]
    return {"pcrs": banks, "events": replayed.events, "quirks": quirks}


def _head(log: EventLog) -> dict[str, JsonValue]:
    algorithms = [str(algorithm) for algorithm in log.algorithms]
    return {"format": log.format.value, "algorithms": algorithms, "padding": len(log.padding)}


def _change_json(change: Change) -> dict[str, JsonValue]:
    return {
        "pcr": change.pcr,
        "words": change.words,
        "details": list(change.details),
        "before": event_json(change.before) if change.before else None,
        "after": event_json(change.after) if change.after else None,
    }


def _load(file: Path) -> EventLog:
    try:
        with file.open("rb") as stream:
            return parse_eventlog(stream.read(MAX_LOG_SIZE + 1))
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read the event log: {error.strerror}",
            where=str(file),
            remedy="name a readable file; the kernel's own log needs root",
        ) from error


def _print_json(value: dict[str, JsonValue]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
