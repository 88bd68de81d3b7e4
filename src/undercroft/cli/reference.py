"""``undercroft reference``: what good looks like, derived from packages."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError
from undercroft.cli import predict
from undercroft.cli.guest import progress
from undercroft.cli.isf import write_symbol_file
from undercroft.formats.kernel.profile import parse_profile
from undercroft.packages.kernel_profile import build_profile, package_identity
from undercroft.packages.profiles import shim_certificates
from undercroft.verify.profile_signature import key_id, load_private_key, sign_profile

app = typer.Typer(
    name="reference",
    help="Derive reference values from packages.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)
MAX_PACKAGE = 1 << 30


predict.register(app)


@app.callback()
def _group() -> None:
    """Derive reference values from packages."""


@app.command()
def kernel(
    package: Annotated[
        Path, typer.Argument(metavar="PACKAGE", help="A kernel package (linux-image-*.deb).")
    ],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Where to write the profile."),
    ] = None,
    ca: Annotated[
        list[Path] | None,
        typer.Option(
            "--ca",
            metavar="FILE",
            help="What the vmlinuz's signature has to lead to: the distribution's Secure Boot "
            "CA (PEM or DER), or its package of shim (shim-unsigned_*.deb), which has it. May be "
            "given again.",
        ),
    ] = None,
    sign: Annotated[
        Path | None,
        typer.Option(
            metavar="KEY",
            help="An Ed25519 private key (PEM) that vouches for the profile: FILE.dsse.",
        ),
    ] = None,
    isf: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a symbol file for volatility3: types from BTF, symbols from kallsyms "
            "(.json, .json.xz or .json.gz). Enough alone.",
        ),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make a kernel profile: what a proof of this kernel's code needs, in one file.

    Every module's signature is verified against the keys inside the kernel.  The kernel's own
    signature is verified if --ca says whom to trust; a profile without that says so.
    """
    if isf is not None:
        size = write_symbol_file(package, isf)
        sys.stderr.write(f"symbol file: {isf}, {size / 1e6:.1f} MB\n")
    if output is None:
        if isf is None:
            raise typer.BadParameter("nothing to write: give --output or --isf")
        return
    anchors = [each for path in ca or [] for each in _certificates(path)]
    key = load_private_key(_read(sign)) if sign is not None else None
    with progress("reading the package") as show:
        deb = _read(package)
        identity = package_identity(deb)
        data = build_profile(
            deb, identity, anchors, lambda count: show.say(f"{count} modules verified")
        )
    profile = parse_profile(data)
    _write(output, data)
    wiring.profiles().remember(profile)
    if key is not None:
        _write(wiring.signature_path(output), sign_profile(profile, key))
    summary = {
        "id": profile.id,
        "package": identity.name,
        "version": identity.version,
        "architecture": identity.architecture,
        "vmlinuz": profile.vmlinuz.sha256,
        "signer": profile.vmlinuz.signer or None,
        "modules": len(profile.modules),
        "bytes": len(data),
        "signed_by": key_id(key.public_key()) if key is not None else None,
    }
    if as_json:
        sys.stdout.write(json.dumps(summary, indent=2) + "\n")
        return
    signer = profile.vmlinuz.signer or "not verified: no --ca was given"
    sys.stdout.write(
        f"{identity.name} {identity.version} ({identity.architecture})\n"
        f"  kernel signed by  {signer}\n"
        f"  modules           {len(profile.modules)}, each signed by a key inside the kernel\n"
        f"  profile           {output}, {len(data) / 1e6:.1f} MB\n"
        f"  id                {profile.id}\n"
    )
    if key is not None:
        sys.stdout.write(f"  vouched for by    {key_id(key.public_key())}\n")


def _write(path: Path, data: bytes) -> None:
    try:
        path.write_bytes(data)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(path)) from error


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_PACKAGE:
            raise FormatError("kernel package", 0, "the file is too large", expected=MAX_PACKAGE)
        return path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"cannot read the file: {error}", where=str(path)) from error


def _certificates(path: Path) -> list[bytes]:
    raw = _read(path)
    if raw.startswith(b"!<arch>\n"):
        return shim_certificates(raw)
    try:
        load = (
            x509.load_pem_x509_certificate
            if raw.lstrip().startswith(b"-----BEGIN")
            else x509.load_der_x509_certificate
        )
        return [load(raw).public_bytes(Encoding.DER)]
    except ValueError as error:
        raise FormatError("X.509 certificate", 0, f"{path}: {error}") from error
