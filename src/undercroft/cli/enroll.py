"""``undercroft enroll``: believe a TPM that is somewhere else, by its maker's roots."""

from __future__ import annotations

import datetime as dt
import sys
from pathlib import Path
from typing import Annotated

import typer

from undercroft.service import foreign
from undercroft.service.authorities import read_authorities

app = typer.Typer(
    name="enroll",
    help="Enroll a TPM that is somewhere else, by its maker's roots.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Where the enrolment is kept.")]


@app.command("begin")
def begin_command(
    folder: _Folder,
    name: Annotated[str, typer.Option(help="What to call the machine.")],
    ak: Annotated[Path, typer.Option(help="The attestation key's public area (tpm2_createak -u).")],
    ek: Annotated[Path, typer.Option(help="The endorsement key's public area (tpm2_createek -u).")],
    ek_certificate: Annotated[
        Path, typer.Option(help="The EK certificate, DER or PEM (tpm2_getekcertificate).")
    ],
    roots: Annotated[
        Path,
        typer.Option(
            help="A folder with the TPM makers' roots that you accept, what stands between, CRLs."
        ),
    ],
) -> None:
    """Check both keys and the certificate, and make a credential that only that TPM can open.

    Exit status 5 if a key or a certificate is not what it must be.
    """
    request = foreign.Request(
        name, foreign.read(ak), foreign.read(ek), foreign.read(ek_certificate)
    )
    authorities = read_authorities(roots)
    path = foreign.begin(request, folder, authorities=authorities, now=dt.datetime.now(dt.UTC))
    sys.stdout.write(
        f"{path}\n"
        "on the machine: tpm2_activatecredential -c AK.ctx -C EK.ctx -i credential.blob -o answer\n"
        f"then here: undercroft enroll finish {folder} answer\n"
    )


@app.command("finish")
def finish_command(
    folder: _Folder,
    answer: Annotated[Path, typer.Argument(metavar="ANSWER", help="What the TPM gave back.")],
) -> None:
    """Check the answer, and write whom to trust: a file for `undercroft verify --trust`.

    Exit status 5 if the answer is wrong: that TPM does not hold both keys.
    """
    path = foreign.finish(folder, foreign.read(answer))
    sys.stdout.write(f"{path}\n")
