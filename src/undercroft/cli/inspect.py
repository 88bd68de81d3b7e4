"""``undercroft inspect`` and ``undercroft attach``: look at a guest from outside."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from undercroft import wiring
from undercroft.base import EnvironmentFault, Finding, Outcome, worst
from undercroft.cli import exit_status, render
from undercroft.cli.proof import Trusted, differences_to, proof_view, read_keys, say_compared
from undercroft.cli.report import report_view
from undercroft.securekernel.confine import confine
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.linux import manifest
from undercroft.securekernel.supervise import Word, tell
from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.traps.attach import StillBootingError
from undercroft.securekernel.traps.guard import EPOCH_S, Mode
from undercroft.service.ownguest import connect_vtpm
from undercroft.service.running import RunningRecord

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
    trusted: Trusted = None,
    against: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="What `inspect --json` printed before: the same proof must come out again.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Look at a guest once and say what was examined and what is wrong.

    Nothing is quoted and no policy is applied: these are the secure kernel's facts, and the
    proof of the kernel's code. A proof made of a running guest can be made again, by anybody,
    from the kernel's package and a dump of the guest (dump:FILE --against).
    """
    opened = wiring.open_target(target, kernel, read_keys(trusted))
    looker = SecureKernel(opened.guest, opened.image, opened.kernel.library, opened.files)
    record = looker.record()
    proof = manifest.manifest(looker.proof, record.facts)
    changed = differences_to(proof, against) if against is not None else []
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
            "proof": proof,
            "proof_sha256": manifest.digest(proof) if proof is not None else None,
        }
        if against is not None:
            document["differences"] = list(changed)
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        console = render.console()
        title = (
            f"{record.guest}: Linux {record.kernel_release}, seen by {', '.join(record.channels)}"
        )
        console.print(report_view(record.facts, title=title, target=target))
        for place in render.mismatches(record.facts):
            console.print(render.mismatch_view(place))
        if proof is not None:
            console.print(proof_view(proof))
        if against is not None:
            say_compared(console, against, changed)
    if changed:
        raise typer.Exit(exit_status.CONTRAINDICATED)
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
    trap: Annotated[
        list[str] | None,
        typer.Option(
            help="What --traps protects besides: SYMBOL, SYMBOL+SIZE or 0xADDRESS+SIZE of the "
            "kernel, or pid:N, the code of a process. May be repeated."
        ),
    ] = None,
    epoch: Annotated[
        float, typer.Option(min=1, help="Seconds after which --traps ends an epoch.")
    ] = EPOCH_S,
    ready_fd: Annotated[int | None, typer.Option(hidden=True)] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Stay beside a running guest and say what changes, as it changes.

    Ends with the guest, after --seconds, at Ctrl-C, or when --traps stopped the guest; the exit
    status is that of the last look.
    """
    opened = wiring.open_target(target, kernel)
    if traps is None:
        alone = SecureKernel(opened.guest, opened.image, opened.kernel.library, opened.files)
        with _recording(opened) as record:
            _watch(alone, interval, seconds, as_json, record)
        return
    if not isinstance(opened.guest, QemuGuest):
        raise EnvironmentFault("only a guest of QEMU can be trapped", where=target)
    if (traps is Mode.SNAPSHOT) != (snapshot is not None):
        raise typer.BadParameter("--traps snapshot and --snapshot FILE belong together")
    second = wiring.open_target(target, kernel).guest
    assert isinstance(second, QemuGuest)
    try:
        trapped = TrappedKernel(
            opened.guest,
            opened.image,
            traps,
            library=opened.kernel.library,
            files=opened.files,
            log=traps_log,
            snapshot=snapshot,
            second=second,
            more=trap or (),
            epoch_s=epoch,
        )
    except StillBootingError:
        tell(ready_fd, Word.BOOTING)
        raise
    with trapped, _recording(opened) as record:
        confine()
        _watch(trapped, interval, seconds, as_json, record, ready_fd)


@contextmanager
def _recording(opened: wiring.Target) -> Iterator[RunningRecord | None]:
    """Connect to the guest's TPM, where it can be: what is seen goes to PCR 19 as it happens."""
    if opened.info is None or opened.info.vtpm_control is None:
        yield None
        return
    with connect_vtpm(opened.info) as client:
        yield RunningRecord(client)


def _watch(
    watched: SecureKernel,
    interval: float,
    seconds: float,
    as_json: bool,
    record: RunningRecord | None,
    ready_fd: int | None = None,
) -> None:
    trapped = watched if isinstance(watched, TrappedKernel) else None
    console = render.console()
    told = ready_fd
    seen: dict[str, tuple[Outcome, str]] = {}
    end = time.monotonic() + seconds if seconds else None
    try:
        while end is None or time.monotonic() < end:
            facts = watched.watch()
            if ready_fd is not None:
                failed = worst(fact.outcome for fact in facts) is Outcome.FAIL
                tell(ready_fd, Word.FAILED if failed else Word.ARMED)
                ready_fd = None
            if record is not None:
                facts += record.keep(facts, trapped.guard.chain() if trapped else ())
            _say_changes(facts, seen, console if not as_json else None)
            watched.guest.check_alive()
            if trapped is not None and _is_over(trapped, told):
                _say_changes([trapped.traps()], seen, console if not as_json else None)
                break
            time.sleep(interval)
    except KeyboardInterrupt:
        pass
    if record is not None and trapped is not None:
        record.keep([trapped.now()], trapped.guard.chain(), last=True)
    raise typer.Exit(_STATUS[worst(outcome for outcome, _ in seen.values())])


def _is_over(trapped: TrappedKernel, ready_fd: int | None) -> bool:
    """Tell whether there is nothing more to watch.

    A confined process cannot attach again: whoever started it has to start another.
    """
    status = trapped.guard.status()
    if status.replaced:
        tell(ready_fd, Word.REPLACED)
    return status.frozen or bool(status.ended)


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
