"""The proof of a kernel's code: shown, and made again from a dump and the package.

A proof speaks of the code and constant data of one moment.  Whoever has the kernel's package and a
dump of the guest from that moment comes to the same one, and needs nothing of ours but this.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from undercroft import wiring
from undercroft.base import FormatError
from undercroft.cli import exit_status, render
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.linux import manifest

Trusted = Annotated[
    list[Path] | None,
    typer.Option(
        "--profile-key",
        metavar="FILE",
        help="A public key (PEM) whose signed profiles are believed. May be given again.",
    ),
]
LISTED = 12
"""Differences between two proofs that are shown to a person."""


def reproduce(
    proof: Path, dump: Path, kernel: Path | None, keys: list[bytes] | None, *, as_json: bool
) -> int:
    """Make the proof in a document of `inspect --json` again; return the exit status.

    Affirmed if the dump and the package give the same proof and it leaves no byte unexplained.
    """
    opened = wiring.open_target(f"dump:{dump}", kernel, keys)
    looker = SecureKernel(opened.guest, opened.image, opened.kernel.library)
    made = manifest.manifest(looker.proof, looker.sweep())
    changed = differences_to(made, proof)
    unexplained = None if made is None else manifest.totals(made).unexplained
    if as_json:
        document = {
            "proof_sha256": None if made is None else manifest.digest(made),
            "unexplained": unexplained,
            "differences": changed,
        }
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        console = render.console()
        if made is not None:
            console.print(proof_view(made))
        say_compared(console, proof, changed)
    if made is None:
        return exit_status.NOT_ENOUGH
    return exit_status.CONTRAINDICATED if changed or unexplained else exit_status.AFFIRMED


def proof_view(proof: manifest.Manifest) -> RenderableType:
    """Return the proof of the kernel's code: how the kernel patched itself, and the sum."""
    table = Table(box=None, pad_edge=False)
    table.add_column("how the kernel patched itself", no_wrap=True)
    table.add_column("sites", justify="right")
    table.add_column("not as packaged", justify="right")
    text = proof["text"]
    rules = text.get("rules") if isinstance(text, dict) else None
    for label, counts in rules.items() if isinstance(rules, dict) else ():
        if isinstance(counts, dict):
            table.add_row(label, f"{counts['sites']:,}", f"{counts['changed']:,}")
    totals = manifest.totals(proof)
    line = (
        f"{totals.compared:,} bytes compared; {totals.deviations:,} places are lawfully not as "
        f"packaged; {totals.unexplained:,} bytes unexplained"
    )
    return Group(Text(), table, Text(line), Text(f"proof sha256:{manifest.digest(proof)}"))


def differences_to(proof: manifest.Manifest | None, against: Path) -> list[str]:
    """Return where the proof differs from the one in a document of `inspect --json`."""
    try:
        document = json.loads(wiring.read_file(against))
    except ValueError as error:
        raise FormatError("kernel proof", 0, f"{against} is not JSON: {error}") from error
    before = document.get("proof") if isinstance(document, dict) else None
    if not isinstance(before, dict) or before.get("format") != manifest.FORMAT:
        raise FormatError("kernel proof", 0, f"{against} holds no proof", expected=manifest.FORMAT)
    return manifest.differences(proof, before)


def say_compared(console: Console, against: Path, changed: list[str]) -> None:
    """Say whether the proof is the one in ``against``, and where it is not."""
    if not changed:
        console.print(f"the same proof as in {render.shown(against)}")
        return
    console.print(f"not the proof in {render.shown(against)}:", style="bold red")
    for line in changed[:LISTED]:
        console.print(f"  {line}")
    if len(changed) > LISTED:
        console.print(f"  and {len(changed) - LISTED} more")


def read_keys(paths: list[Path] | None) -> list[bytes] | None:
    """Read the public keys whose signed profiles are believed."""
    return None if paths is None else [wiring.read_file(path) for path in paths]
