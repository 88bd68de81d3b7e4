"""``undercroft verify``: appraise a saved case again, offline."""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.appraise.explain import explain
from undercroft.appraise.model import Appraisal, Judgement
from undercroft.base import EnvironmentFault, JsonValue
from undercroft.cli import render
from undercroft.cli.proof import Trusted, read_keys, reproduce
from undercroft.formats.ear import Tier
from undercroft.service.casefile import Case, load_case
from undercroft.service.policies import PolicyFolder
from undercroft.service.verifier import accept_case, appraise_case, appraised_at

RECORDED, NOW = "recorded", "now"
NoState = Annotated[
    bool,
    typer.Option(
        "--no-state",
        help="Neither compare with what was accepted of this key before, nor remember this.",
    ),
]


def verify(
    case: Annotated[
        Path,
        typer.Argument(help="A folder that `evidence collect` wrote, or, with --dump, a proof."),
    ],
    trust: Annotated[
        Path | None, typer.Option(help="Whom to trust, instead of the folder's trust.json.")
    ] = None,
    references: Annotated[
        Path | None, typer.Option(help="Reference values, instead of the folder's.")
    ] = None,
    policy: Annotated[Path | None, typer.Option(help="A policy, instead of the folder's.")] = None,
    at: Annotated[
        str,
        typer.Option(
            help="As of when: 'recorded' (when it was appraised first), 'now', or Unix seconds."
        ),
    ] = RECORDED,
    no_state: NoState = False,
    dump: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="A dump of the guest: make the proof of its kernel's code again from it.",
        ),
    ] = None,
    kernel: Annotated[
        Path | None,
        typer.Option(help="With --dump: package (.deb), profile or vmlinuz of the guest's kernel."),
    ] = None,
    trusted: Trusted = None,
    every: Annotated[
        bool, typer.Option("--every", help="List each check that passes, too.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Appraise a saved case again, from its bytes alone.

    Evidence that is not authentic gives exit status 5 and no verdict. With `--at now` it must
    also not be older than what was accepted of the same key before, and is then remembered.

    With `--dump` and `--kernel` a saved proof is made again instead, from the kernel's package
    and a dump of the guest (raw, ELF core or LiME): affirmed if it is the same and no byte is
    unexplained.
    """
    if dump is not None:
        raise typer.Exit(reproduce(case, dump, kernel, read_keys(trusted), as_json=as_json))
    loaded = load_saved_case(case, trust=trust, references=references, policy=policy)
    if no_state:
        loaded = replace(loaded, last=None)
    if at == NOW and not no_state:
        _, appraisal = accept_case(loaded, int(time.time()), wiring.accepted_states())
    else:
        appraisal = appraise_case(loaded, appraisal_time(at, case))
    if as_json:
        sys.stdout.write(json.dumps(appraisal_json(appraisal), indent=1) + "\n")
    else:
        view = render.appraisal_view(appraisal, title=str(case), every=every)
        render.console().print(view)
    raise typer.Exit(appraisal.exit_status)


def load_saved_case(
    folder: Path,
    *,
    trust: Path | None = None,
    references: Path | None = None,
    policy: Path | None = None,
) -> Case:
    """Read a case; a policy in its own file may be signed, and then has to be acceptable."""
    tables = wiring.reference_home() / "tables"
    case = load_case(folder, trust=trust, references=references, tables=tables)
    if policy is None:
        return case
    return replace(case, policy=PolicyFolder(wiring.policy_home()).read(policy))


def appraisal_time(at: str, case: Path) -> int:
    """Return the time that ``at`` stands for: see the option of ``verify``."""
    if at == RECORDED:
        return appraised_at(case)
    if at == NOW:
        return int(time.time())
    if not at.isdecimal():
        raise EnvironmentFault("not a time", where="--at", expected="Unix seconds", got=at)
    return int(at)


def _why(judgement: Judgement) -> dict[str, JsonValue]:
    """Say of what keeps a machine from being affirmed how it came about and what to do."""
    if judgement.tier in (None, Tier.AFFIRMING):
        return {}
    return {"why": explain(judgement).as_json()}


def appraisal_json(appraisal: Appraisal) -> dict[str, JsonValue]:
    """Return an appraisal as a JSON object."""
    return {
        "guest": appraisal.guest,
        "verdict": appraisal.verdict.label,
        "policy": appraisal.policy_id,
        "references": appraisal.references,
        "nonce": str(appraisal.nonce),
        "appraised_at": appraisal.appraised_at,
        "expires_at": appraisal.expires_at,
        "trust_vector": {claim.value: value for claim, value in appraisal.trust_vector.items()},
        "findings": [
            {**judgement.as_json(), **_why(judgement)} for judgement in appraisal.judgements
        ],
    }
