"""``undercroft doctor``: what this machine has and lacks."""

from __future__ import annotations

import json
import sys
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from undercroft import wiring
from undercroft.cli import exit_status
from undercroft.cli.guest import progress
from undercroft.guests.host import PYTHON_PURPOSE, Check, State, apt_line, survey

app = typer.Typer()

_MARKS = {State.OK: "ok", State.LIMITED: "limited", State.MISSING: "MISSING"}


def _json(checks: tuple[Check, ...], ready: bool) -> str:
    rows = [
        {
            "name": c.name, "state": c.state.value, "found": c.found, "purpose": c.purpose,
            "package": c.package, "needed": c.needed,
        }
        for c in checks
    ]  # fmt: skip
    return json.dumps({"ready": ready, "apt": apt_line(checks), "checks": rows}, indent=1)


def _shortened(checks: tuple[Check, ...]) -> list[Check]:
    """Return the checks with all Python packages in one row, if nothing is wrong with them."""
    ours = [c for c in checks if c.purpose == PYTHON_PURPOSE]
    if any(c.state is not State.OK for c in ours):
        return list(checks)
    found = f"{len(ours)} as required"
    summary = Check("Python packages", State.OK, found, "what undercroft is built on")
    first = checks.index(ours[0]) if ours else len(checks)
    rest = [c for c in checks if c not in ours]
    return [*rest[:first], summary, *rest[first:]]


@app.command("doctor")
def doctor(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Say what this machine has and lacks, and the apt line that brings it."""
    with progress("looking"):
        checks = survey(wiring.home())
    ready = not any(c.needed and c.state is State.MISSING for c in checks)
    if as_json:
        sys.stdout.write(_json(checks, ready) + "\n")
    else:
        table = Table(box=None, pad_edge=False)
        for heading in ("", "what"):
            table.add_column(heading, no_wrap=True)
        for heading in ("found", "for"):
            table.add_column(heading)
        for check in _shortened(checks):
            table.add_row(_MARKS[check.state], check.name, check.found, check.purpose)
        console = Console()
        console.print(table)
        if line := apt_line(checks):
            console.print(f"\nAs root: {line}", highlight=False, soft_wrap=True)
        elif ready:
            console.print("\nEverything needed is here.")
    if not ready:
        raise typer.Exit(exit_status.OUR_FAILURE)
