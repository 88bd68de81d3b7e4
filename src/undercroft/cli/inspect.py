"""``undercroft inspect`` and ``undercroft attach``: look at a guest from outside."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from undercroft import wiring
from undercroft.base import EnvironmentFault, Finding, Outcome, worst
from undercroft.cli import exit_status, render
from undercroft.securekernel.confine import confine
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.traps.guard import Mode

Target = Annotated[str, typer.Argument(help="qemu:NAME, qemu:PID or dump:FILE")]
Kernel = Annotated[
    Path | None,
    typer.Option(
        help="Package (.deb), profile or vmlinuz of the kernel that the guest is meant to run."
    ),
]

_STATUS = {
    Outcome.PASS: exit_status.AFFIRMED,
    Outcome.FAIL: exit_status.CONTRAINDICATED,
    Outcome.UNKNOWN: exit_status.NOT_ENOUGH,
}


def inspect(
    target: Target,
    kernel: Kernel = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look at a running guest once and say what was examined and what is wrong.

    Nothing is quoted and no policy is applied: these are the secure kernel's facts.
    """
    opened = wiring.open_target(target, kernel)
    record = SecureKernel(opened.guest, opened.image, opened.kernel.library).record()
    if as_json:
        document = {
            "guest": record.guest,
            "kernel": {
                "release": record.kernel_release,
                "build_id": record.kernel_build_id.hex(),
            },
            "t0_ns": record.t0,
            "t1_ns": record.t1,
            "channels": list(record.channels),
            "facts": [fact.as_json() for fact in record.facts],
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        console = render.console()
        title = (
            f"{record.guest}: Linux {record.kernel_release}, seen by {', '.join(record.channels)}"
        )
        console.print(render.findings_table(record.facts, title=title))
        for place in render.mismatches(record.facts):
            console.print(render.mismatch_view(place))
    raise typer.Exit(_STATUS[worst(fact.outcome for fact in record.facts)])


def attach(
    target: Target,
    kernel: Kernel = None,
    interval: Annotated[
        float, typer.Option(min=0.01, help="Seconds between two looks at the kernel's text.")
    ] = 0.1,
    seconds: Annotated[
        float, typer.Option(min=0, help="Stop after this long; 0: until the guest ends.")
    ] = 0,
    traps: Annotated[
        Mode | None,
        typer.Option(
            help="Trap writes to the kernel's code and constants too; say what is done about an "
            "unexplained one: it lands (observe), the guest is stopped before it lands "
            "(enforce, snapshot), or ended (kill)."
        ),
    ] = None,
    traps_log: Annotated[
        Path | None, typer.Option(help="Append what the traps see to this file, as epochs.")
    ] = None,
    snapshot: Annotated[
        Path | None, typer.Option(help="Where --traps snapshot saves the guest's memory.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Stay beside a running guest and say what changes, as it changes.

    Ends with the guest, after --seconds, at Ctrl-C, or when --traps stopped the guest; the exit
    status is that of the last look.
    """
    opened = wiring.open_target(target, kernel)
    if traps is None:
        _watch(
            SecureKernel(opened.guest, opened.image, opened.kernel.library),
            interval,
            seconds,
            as_json,
        )
        return
    if not isinstance(opened.guest, QemuGuest):
        raise EnvironmentFault("only a guest of QEMU can be trapped", where=target)
    if (traps is Mode.SNAPSHOT) != (snapshot is not None):
        raise typer.BadParameter("--traps snapshot and --snapshot FILE belong together")
    second = wiring.open_target(target, kernel).guest
    assert isinstance(second, QemuGuest)
    with TrappedKernel(
        opened.guest,
        opened.image,
        traps,
        library=opened.kernel.library,
        log=traps_log,
        snapshot=snapshot,
        second=second,
    ) as trapped:
        confine()
        _watch(trapped, interval, seconds, as_json)


def _watch(watched: SecureKernel, interval: float, seconds: float, as_json: bool) -> None:
    console = render.console()
    seen: dict[str, tuple[Outcome, str]] = {}
    end = time.monotonic() + seconds if seconds else None
    try:
        while end is None or time.monotonic() < end:
            _say_changes(watched.watch(), seen, console if not as_json else None)
            watched.guest.check_alive()
            if isinstance(watched, TrappedKernel) and watched.guard.status().frozen:
                _say_changes([watched.traps()], seen, console if not as_json else None)
                break
            time.sleep(interval)
    except KeyboardInterrupt:
        pass
    raise typer.Exit(_STATUS[worst(outcome for outcome, _ in seen.values())])


def _say_changes(
    facts: list[Finding], seen: dict[str, tuple[Outcome, str]], console: Console | None
) -> None:
    """Print the facts whose outcome or summary is new, and remember them in ``seen``."""
    changed = [fact for fact in facts if seen.get(fact.id) != (fact.outcome, fact.summary)]
    seen.update({fact.id: (fact.outcome, fact.summary) for fact in changed})
    if not changed:
        return
    if console is None:
        for fact in changed:
            sys.stdout.write(json.dumps({"time": time.time(), **fact.as_json()}) + "\n")
        sys.stdout.flush()
        return
    console.print(render.findings_table(changed, title=time.strftime("%H:%M:%S")))
    for place in render.mismatches(changed):
        console.print(render.mismatch_view(place))
