"""``undercroft reference predict`` and ``diff``: a boot's measurements before it, and after."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.appraise.prediction import Comparison, Deviation, compare_prediction
from undercroft.base import EnvironmentFault, HashAlgorithm, JsonValue
from undercroft.cli.exit_status import CONTRAINDICATED, USAGE
from undercroft.cli.guest import AccelOption, progress
from undercroft.formats.eventlog import MAX_LOG_SIZE, parse_eventlog
from undercroft.formats.eventlog.asjson import event_json
from undercroft.guests.accel import choose
from undercroft.guests.chain import Chain
from undercroft.guests.manifest import GuestBuild, load_build
from undercroft.guests.references import unpredicted_pcrs
from undercroft.guests.run import Guest, RunOptions
from undercroft.reference.boot import (
    UNMEASURED,
    PredictedEvent,
    boot_aggregate,
    encode_prediction,
    predicted_pcrs,
)
from undercroft.reference.model import Provenance
from undercroft.securekernel.inspect import SecureKernel
from undercroft.service.ownguest import planned_events, predicted_events

_BANKS = (HashAlgorithm.SHA1, HashAlgorithm.SHA256)

_Target = Annotated[
    str,
    typer.Argument(
        metavar="TARGET",
        help="A guest (qemu:NAME), or a build that has not run yet (micro, debian-grub, ...).",
    ),
]
_Accel = Annotated[AccelOption, typer.Option(help="Accelerator of a build that has not run yet.")]
_Cpu = Annotated[str, typer.Option(help="Its QEMU CPU model and flags; empty: the best.")]
_Cpus = Annotated[int, typer.Option(min=1, max=64, help="Its virtual CPUs.")]
_Memory = Annotated[int, typer.Option(min=256, max=1 << 20, help="Its memory in MiB.")]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def register(app: typer.Typer) -> None:
    """Add the verbs to the group ``reference``."""
    app.command("predict")(predict)
    app.command("diff")(diff)


def predict(
    target: _Target,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it as a TCG event log too."),
    ] = None,
    accel: _Accel = AccelOption.AUTO,
    cpu: _Cpu = "",
    cpus: _Cpus = 2,
    memory: _Memory = 1024,
    as_json: _Json = False,
) -> None:
    """Show what a boot will measure, event by event, and where each value comes from.

    Nothing of a running guest is read.  What the firmware writes into itself is learned once for
    each machine shape, by running the firmware alone.
    """
    build = _build(target)
    unpredicted = unpredicted_pcrs(build.chain)
    events = _events(target, accel, RunOptions(cpu=cpu or None, cpus=cpus, memory_mb=memory))
    if output is not None:
        try:
            output.write_bytes(encode_prediction(events, _BANKS))
        except OSError as error:
            raise EnvironmentFault(f"cannot write the log: {error}", where=str(output)) from error
    if as_json:
        _print_json(_prediction_json(events, build.chain))
        return
    out = []
    for event in events:
        out.append(f"PCR {event.pcr:<3} {event.event_type:34} {_one_line(event.description)}")
        digest = event.digest(HashAlgorithm.SHA256).hex()
        out.append(f"        sha256:{digest}  {_source(event.provenance)}")
    for bank in [predicted_pcrs(events, bank, unpredicted) for bank in _BANKS]:
        out.append(f"{bank.algorithm}:")
        out += [f"  {pcr:2}  {value.hex()}" for pcr, value in sorted(bank.values.items())]
        if not unpredicted:
            out.append(f"  IMA's boot_aggregate  {boot_aggregate(bank).hex()}")
    out += [f"PCR {pcr} is not predicted: {why}" for pcr, why in unpredicted.items()]
    if unmeasured := _never_measured(build.chain):
        out.append("NOT measured by this boot chain, so that no PCR vouches for it:")
        out += [f"  {line}" for line in unmeasured]
    sys.stdout.write("\n".join(out) + "\n")


def diff(
    target: _Target,
    log: Annotated[
        Path | None,
        typer.Argument(metavar="[LOG]", help="An event log; without it, that of the guest."),
    ] = None,
    accel: _Accel = AccelOption.AUTO,
    cpu: _Cpu = "",
    cpus: _Cpus = 2,
    memory: _Memory = 1024,
    as_json: _Json = False,
) -> None:
    """Say in words how a boot differs from its prediction; exit 3 if it does.

    An event log proves nothing by itself: `undercroft evidence collect` ties it to a quote.
    """
    events = _events(target, accel, RunOptions(cpu=cpu or None, cpus=cpus, memory_mb=memory))
    data = _log_of(target) if log is None else _read(log)
    try:
        found = compare_prediction(events, parse_eventlog(data))
    except ValueError as error:
        sys.stderr.write(f"undercroft: {error}\n")
        raise typer.Exit(USAGE) from None
    if as_json:
        _print_json(_comparison_json(found))
    else:
        out = []
        for one in found.deviations:
            out += [one.words, *(f"    {line}" for line in one.details)]
            if one.predicted:
                out.append(f"    predicted from {_source(one.predicted.provenance)}")
        same = ", ".join(map(str, found.same)) or "none"
        out.append(f"{len(found.deviations)} deviations; PCRs measured as predicted: {same}")
        sys.stdout.write("\n".join(out) + "\n")
    if found.deviations:
        raise typer.Exit(CONTRAINDICATED)


def _build(target: str) -> GuestBuild:
    """Return what is built as ``target``, or what the guest ``qemu:NAME`` was started from."""
    home = wiring.home()
    scheme, colon, name = target.partition(":")
    if colon and scheme == "qemu":
        return load_build(Guest.load(home, name).info.build.parent)
    folder = home.absolute() / "builds" / target
    if colon or not (folder / "build.json").is_file():
        raise EnvironmentFault(
            "neither a guest nor a build",
            expected="qemu:NAME, or the name of a build: micro, debian-grub",
            got=target,
            remedy="undercroft guest build",
        )
    return load_build(folder.resolve())


def _events(target: str, accel: AccelOption, options: RunOptions) -> tuple[PredictedEvent, ...]:
    home = wiring.home()
    build = _build(target)
    _, guest, name = target.partition("qemu:")
    with progress("predicting the boot"):
        if guest:
            return predicted_events(Guest.load(home, name).info, home)
        chosen = choose(accel.choice(), home, build.kernel.path).accel
        return planned_events(build, options, chosen, home)


def _log_of(target: str) -> bytes:
    if not target.startswith("qemu:"):
        raise EnvironmentFault("a build has no event log", remedy="name one, or a running guest")
    opened = wiring.open_target(target)
    data = SecureKernel(opened.guest, opened.image).event_log()
    if data is None:
        raise EnvironmentFault("the guest's kernel keeps no event log", where=target)
    return data


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as stream:
            return stream.read(MAX_LOG_SIZE + 1)
    except OSError as error:
        raise EnvironmentFault(
            f"cannot read the event log: {error.strerror}", where=str(path)
        ) from error


def _never_measured(chain: Chain) -> Sequence[str]:
    return UNMEASURED if chain is Chain.LEGACY else ()


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _source(provenance: Provenance) -> str:
    note = f" ({provenance.note})" if provenance.note else ""
    return f"{provenance}{note}"


def _prediction_json(events: Sequence[PredictedEvent], chain: Chain) -> dict[str, JsonValue]:
    unpredicted = unpredicted_pcrs(chain)
    banks = [predicted_pcrs(events, bank, unpredicted) for bank in _BANKS]
    pcrs: dict[str, JsonValue] = {
        str(bank.algorithm): {str(pcr): value.hex() for pcr, value in bank.values.items()}
        for bank in banks
    }
    aggregates: dict[str, JsonValue] = {
        str(bank.algorithm): boot_aggregate(bank).hex() for bank in banks if not unpredicted
    }
    shown: list[JsonValue] = [_event_json(event) for event in events]
    return {
        "events": shown,
        "pcrs": pcrs,
        "boot_aggregate": aggregates,
        "unpredicted": {str(pcr): why for pcr, why in unpredicted.items()},
        "never_measured": list(_never_measured(chain)),
    }


def _event_json(event: PredictedEvent) -> dict[str, JsonValue]:
    source = event.provenance
    digests: dict[str, JsonValue] = {str(d.algorithm): d.value.hex() for d in event.digests}
    return {
        "pcr": event.pcr,
        "type": event.event_type,
        "what": event.description,
        "digests": digests,
        "provenance": {
            "grade": source.grade.value,
            "package": source.package,
            "version": source.version,
            "origin": source.origin,
            "release_sha256": source.release_sha256,
            "signer": source.signer,
            "note": source.note,
        },
    }


def _comparison_json(found: Comparison) -> dict[str, JsonValue]:
    return {
        "deviations": [_deviation_json(one) for one in found.deviations],
        "same": list(found.same),
    }


def _deviation_json(one: Deviation) -> dict[str, JsonValue]:
    return {
        "pcr": one.pcr,
        "words": one.words,
        "details": list(one.details),
        "predicted": _event_json(one.predicted) if one.predicted else None,
        "found": event_json(one.found) if one.found else None,
    }


def _print_json(value: dict[str, JsonValue]) -> None:
    sys.stdout.write(json.dumps(value, indent=2) + "\n")
