"""``undercroft watch``: keep a secure kernel beside a guest, whatever happens to either."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.base import EnvironmentFault
from undercroft.cli import exit_status, render
from undercroft.cli.inspect import Kernel, Target
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.supervise import Death, OnDeath, Supervisor, Word
from undercroft.securekernel.traps.guard import EPOCH_S, Mode

_WHY = {
    Word.BOOTING: "there was no kernel yet that it could guard",
    Word.REPLACED: "the guest was reset or restored",
}


def watch(
    target: Target,
    kernel: Kernel = None,
    traps: Annotated[
        Mode, typer.Option(help="What is done about an unexplained write; see `attach`.")
    ] = Mode.ENFORCE,
    on_death: Annotated[
        OnDeath,
        typer.Option(
            help="What happens to the guest while no secure kernel is there: it stands still until "
            "the next one has proven everything (pause), it is ended (kill), or it runs on and "
            "nobody vouches for it (lapse)."
        ),
    ] = OnDeath.PAUSE,
    traps_log: Annotated[
        Path | None, typer.Option(help="Append what the traps see to this file, as epochs.")
    ] = None,
    trap: Annotated[
        list[str] | None, typer.Option(help="What else is protected; see `attach`.")
    ] = None,
    epoch: Annotated[
        float, typer.Option(min=1, help="Seconds after which an epoch ends.")
    ] = EPOCH_S,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object a line.")] = False,
) -> None:
    """Supervise a secure kernel with write traps: start it, and again if it dies.

    Runs until the guest ends, or --on-death kill ended it. Each secure kernel is a process of its
    own, confined, and prints what it sees.
    """
    guest = wiring.open_target(target, kernel).guest
    if not isinstance(guest, QemuGuest):
        raise EnvironmentFault("only a guest of QEMU can be supervised", where=target)
    command = [sys.executable, "-m", "undercroft.cli", "attach", target, "--traps", traps.value]
    for option, value in (("--kernel", kernel), ("--traps-log", traps_log)):
        command += [option, str(value)] if value is not None else []
    command += ["--epoch", str(epoch)]
    for place in trap or ():
        command += ["--trap", place]
    command += ["--json"] if as_json else []

    def report(death: Death) -> None:
        _report(death, on_death, as_json=as_json)

    supervisor = Supervisor(command, guest.pid, guest.controls(), on_death, on_death=report)
    why = supervisor.run()
    if as_json:
        _print({"ended": why})
    else:
        render.console().print(f"Supervision ended: {why}.")
    raise typer.Exit(exit_status.NOT_ENOUGH)


def _report(death: Death, policy: OnDeath, *, as_json: bool) -> None:
    why = _WHY.get(death.told) if death.told is not None else None
    if as_json:
        _print({"secure_kernel": death.pid, "died": death.status, "because": why or "unknown"})
        return
    held = why is None and policy is OnDeath.PAUSE
    render.console().print(
        f"The secure kernel (process {death.pid}) ended with status {death.status}"
        + (f": {why}." if why else ".")
        + (" The guest stands still until the next one has proven everything." if held else "")
    )


def _print(document: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(document) + "\n")
    sys.stdout.flush()
