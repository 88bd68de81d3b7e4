"""``undercroft evidence``: collect what a verdict rests on."""

from __future__ import annotations

import datetime as dt
import json
import sys
import time
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.appraise.host import HostRules
from undercroft.base import EnvironmentFault
from undercroft.cli import render
from undercroft.cli.inspect import Kernel, Target
from undercroft.cli.verify import NoState, appraisal_json
from undercroft.guests.chain import Chain
from undercroft.guests.manifest import load_build
from undercroft.guests.run import Guest
from undercroft.policy import Policy
from undercroft.reference.model import merge
from undercroft.securekernel.hypervisor.qemu import QemuGuest
from undercroft.securekernel.inspect import SecureKernel
from undercroft.securekernel.trapped import TrappedKernel
from undercroft.securekernel.traps.guard import Mode
from undercroft.service.casefile import (
    Case,
    read_policy,
    read_references,
    save_case,
    save_result,
)
from undercroft.service.collect import collect
from undercroft.service.hosttpm import accept_host, open_host_tpm, trust_host
from undercroft.service.machine import machine_facts
from undercroft.service.ownguest import connect_vtpm, enrol_guest, guest_references
from undercroft.service.policies import PolicyFolder
from undercroft.service.verifier import (
    ResultSigner,
    accept_case,
    appraise_case,
    new_challenge,
)

app = typer.Typer(help="Collect evidence.", no_args_is_help=True, rich_markup_mode=None)


@app.callback()
def _group() -> None:
    """Collect evidence."""


@app.command("collect")
def collect_command(
    target: Target,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="The folder to write; made if need be.")
    ],
    kernel: Kernel = None,
    policy: Annotated[
        Path | None,
        typer.Option(help="A policy file; without it the shipped debian or direct-boot."),
    ] = None,
    host_tpm: Annotated[
        bool,
        typer.Option(
            "--host-tpm",
            help="Have the host's TPM vouch too: /dev/tpmrm0, else a program that stands in.",
        ),
    ] = False,
    host_references: Annotated[
        Path | None,
        typer.Option(help="With --host-tpm: reference values for the host's own boot and files."),
    ] = None,
    host_policy: Annotated[
        Path | None,
        typer.Option(help="With --host-references: the host's policy; else the shipped default."),
    ] = None,
    traps: Annotated[
        float,
        typer.Option(
            min=0,
            help="Trap writes to the kernel for so many seconds before the quote, which then says "
            "that nothing changed in that time, or what did.",
        ),
    ] = 0,
    references: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="SET",
            help="More reference values, such as a set of packages that is kept up to date; may be "
            "given again.",
        ),
    ] = None,
    no_state: NoState = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Challenge a guest, collect its evidence, appraise it, and save it all in one folder.

    Enrols the guest's attestation key, derives reference values from the packages that the guest
    was built from, and signs a result. `undercroft verify` reproduces the verdict offline.
    Evidence that is older than what was accepted of the same key (a vTPM that was rolled back)
    is refused.
    """
    rules = wiring.shipped_policy(_usual_policy(target))
    if policy is not None:
        rules = PolicyFolder(wiring.policy_home()).read(policy)
    host = _host_rules(host_references, host_policy, host_tpm=host_tpm)
    case = _collect(target, kernel, rules, host_tpm=host_tpm, traps=traps)
    more = [read_references(path) for path in references or ()]
    known = merge(case.references.name, (case.references, *more))
    case = replace(case, host=host, references=known, tables=wiring.open_tables(known))
    if no_state:
        appraisal = appraise_case(case, int(time.time()))
    else:
        case, appraisal = accept_case(case, int(time.time()), wiring.accepted_states())
    if host_tpm:
        accept_host(case.evidence, wiring.home())
    signer = ResultSigner.load(wiring.home() / "verifier")
    save_case(output, case)
    save_result(output, signer.sign(appraisal), signer.public)
    if as_json:
        document = {"folder": str(output), **appraisal_json(appraisal)}
        sys.stdout.write(json.dumps(document, indent=1) + "\n")
    else:
        console = render.console()
        console.print(render.appraisal_view(appraisal, title=target))
        where = render.shown(output.absolute())
        console.print(f"saved in {where}; `undercroft verify {where}` appraises it again")
    raise typer.Exit(appraisal.exit_status)


def _usual_policy(target: str) -> str:
    """Return the name of the shipped policy for a target that no policy was given for."""
    scheme, _, name = target.partition(":")
    if scheme != "qemu" or name.isdecimal():
        return "direct-boot"
    build = load_build(Guest.load(wiring.home(), name).info.build.parent)
    return "direct-boot" if build.chain is Chain.DIRECT else "debian"


def _host_rules(
    references: Path | None, policy: Path | None, *, host_tpm: bool
) -> HostRules | None:
    if references is None:
        if policy is not None:
            raise typer.BadParameter("--host-policy needs --host-references")
        return None
    if not host_tpm:
        raise typer.BadParameter("--host-references needs --host-tpm")
    rules = read_policy(policy) if policy else wiring.shipped_policy("default")
    return HostRules(read_references(references), rules)


def _collect(
    target: str, kernel: Path | None, policy: Policy, *, host_tpm: bool, traps: float
) -> Case:
    opened = wiring.open_target(target, kernel)
    info = opened.info
    if info is None:
        raise EnvironmentFault(
            "only a guest that we started has a TPM that can quote from outside",
            where=target,
            remedy="undercroft guest run",
        )
    with connect_vtpm(info) as client:
        trust = enrol_guest(client, info, wiring.home(), dt.datetime.now(dt.UTC))
        references = guest_references(info, wiring.home(), trust.ek_certificate)
        with _secure_kernel(opened, traps) as secure_kernel:
            time.sleep(traps)
            challenge = new_challenge(policy, int(time.time()))
            evidence = collect(
                secure_kernel, client, challenge, lambda: machine_facts(info, client)
            )
    if host_tpm:
        with open_host_tpm(wiring.home()) as tpm:
            trust = trust_host(trust, tpm, wiring.home(), dt.datetime.now(dt.UTC))
            layer = tpm.vouch(evidence, challenge.nonce)
        evidence = replace(evidence, host_layer=layer)
    return Case(evidence, challenge, trust, references, policy)


def _secure_kernel(
    opened: wiring.Target, traps: float
) -> AbstractContextManager[SecureKernel | TrappedKernel]:
    """Return a secure kernel beside the guest, with write traps if time is given to them."""
    if not traps:
        return nullcontext(
            SecureKernel(opened.guest, opened.image, opened.kernel.library, opened.files)
        )
    if not isinstance(opened.guest, QemuGuest):
        raise EnvironmentFault("only a guest of QEMU can be trapped", where=opened.guest.name)
    return TrappedKernel(
        opened.guest,
        opened.image,
        Mode.OBSERVE,
        library=opened.kernel.library,
        files=opened.files,
    )
