"""``undercroft policy``: what has to hold, checked, explained, tried out and signed."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from undercroft import wiring
from undercroft.appraise.explain import explain as explain_judgement
from undercroft.appraise.model import Appraisal, Judgement
from undercroft.base import EnvironmentFault, JsonValue
from undercroft.cli.verify import appraisal_time, load_saved_case
from undercroft.policy import Policy
from undercroft.policy.words import gaps, in_words
from undercroft.service.casefile import read_part
from undercroft.service.policies import PolicyFolder, is_signed, read_plain_policy
from undercroft.service.verifier import appraise_case
from undercroft.verify.policy_signature import sign_policy_text
from undercroft.verify.profile_signature import key_id, load_private_key, load_public_key

app = typer.Typer(
    name="policy",
    help="Check, explain, try out and sign policies.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
)

_Policy = Annotated[
    str, typer.Argument(metavar="POLICY", help="A file, or the name of a shipped policy.")
]
_Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


@app.callback()
def _group() -> None:
    """Check, explain, try out and sign policies."""


def read_policy(name: str) -> Policy:
    """Read a policy file, plain or signed, or a shipped policy by its name."""
    path = Path(name)
    if path.suffix or path.exists():
        return PolicyFolder(wiring.policy_home()).read(path)
    return wiring.shipped_policy(name)


@app.command()
def check(policy: _Policy, as_json: _Json = False) -> None:
    """Read a policy and say what it leaves open. Exit status 4 if it can affirm nothing."""
    read = read_policy(policy)
    open_points = gaps(read)
    if as_json:
        result: dict[str, JsonValue] = {
            "id": read.id,
            "identifier": read.identifier,
            "serial": read.serial,
            "demands": not read.demands_nothing,
            "leaves-open": list(open_points),
        }
        sys.stdout.write(json.dumps(result, indent=1) + "\n")
    else:
        sys.stdout.write(f"{read.identifier}\n")
        for point in open_points:
            sys.stdout.write(f"  leaves open: {point}\n")
        if not open_points:
            sys.stdout.write("  every layer is demanded\n")
    if read.demands_nothing:
        raise typer.Exit(4)


@app.command()
def explain(policy: _Policy, as_json: _Json = False) -> None:
    """Say in words what a policy demands, rule by rule."""
    read = read_policy(policy)
    rows = in_words(read)
    if as_json:
        told: list[JsonValue] = [{"rule": rule, "says": says} for rule, says in rows]
        sys.stdout.write(json.dumps({"id": read.identifier, "rules": told}, indent=1) + "\n")
        return
    sys.stdout.write(f"{read.identifier}\n")
    width = max(len(rule) for rule, _ in rows)
    for rule, says in rows:
        sys.stdout.write(f"  {rule:<{width}}  {says}\n")


@app.command(name="test")
def try_out(
    policy: _Policy,
    cases: Annotated[
        list[Path], typer.Argument(metavar="CASE...", help="Folders of saved evidence.")
    ],
    as_json: _Json = False,
) -> None:
    """Appraise saved evidence by a policy, and say what would change. Nothing is written.

    Each case is judged as of when it was first. Exit status 3 if a verdict would change.
    """
    new = read_policy(policy)
    results: list[JsonValue] = []
    changed = False
    for folder in cases:
        case = load_saved_case(folder)
        at = appraisal_time("recorded", folder)
        before = appraise_case(case, at)
        after = appraise_case(replace(case, policy=new), at)
        changed |= before.verdict is not after.verdict
        result = _compared(before, after)
        results.append({"case": str(folder), **result})
        if not as_json:
            sys.stdout.write("".join(_told(folder, before, after)))
    if as_json:
        sys.stdout.write(json.dumps(results, indent=1) + "\n")
    if changed:
        raise typer.Exit(3)


_Key = tuple[str, str]


def _tiers(appraisal: Appraisal) -> dict[_Key, Judgement]:
    return {(j.finding.id, j.finding.summary): j for j in appraisal.judgements}


def _differences(before: Appraisal, after: Appraisal) -> Iterator[tuple[str, str, Judgement]]:
    """Yield each judgement that counts otherwise than before: from, to, and the new one."""
    old, new = _tiers(before), _tiers(after)
    for key in dict.fromkeys((*new, *old)):
        was, now = old.get(key), new.get(key)
        words = [
            "absent" if one is None else one.tier.label if one.tier else "stated"
            for one in (was, now)
        ]
        judgement = now or was
        if words[0] != words[1] and judgement is not None:
            yield words[0], words[1], judgement


def _compared(before: Appraisal, after: Appraisal) -> dict[str, JsonValue]:
    changes: list[JsonValue] = [
        {
            "id": judgement.finding.id,
            "summary": judgement.finding.summary,
            "before": was,
            "after": now,
            **explain_judgement(judgement).as_json(),
        }
        for was, now, judgement in _differences(before, after)
    ]
    return {
        "before": before.verdict.label,
        "after": after.verdict.label,
        "policy-before": before.policy_id,
        "policy-after": after.policy_id,
        "changes": changes,
    }


def _told(folder: Path, before: Appraisal, after: Appraisal) -> Iterator[str]:
    verdict = f"{before.verdict.label} -> {after.verdict.label}"
    if before.verdict is after.verdict:
        verdict = f"{after.verdict.label}, as before"
    yield f"{folder}: {verdict}\n"
    for was, now, judgement in _differences(before, after):
        why = explain_judgement(judgement)
        yield f"  {judgement.finding.id}: {was} -> {now}: {judgement.finding.summary}\n"
        if now not in ("affirming", "stated", "absent"):
            yield f"      rule {why.rule}; {why.suggestion}\n"


@app.command()
def sign(
    policy: Annotated[Path, typer.Argument(metavar="POLICY", help="A policy with a serial.")],
    key: Annotated[
        list[Path],
        typer.Option("--key", metavar="FILE", help="An Ed25519 private key (PEM); also several."),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="Where to write the envelope.")
    ],
) -> None:
    """Sign a policy (DSSE). Its serial has to go up with each issue."""
    data = read_part(policy)
    if is_signed(data):
        raise EnvironmentFault("the policy is signed already", where=str(policy))
    read = read_plain_policy(policy, data)
    if not read.serial:
        raise EnvironmentFault(
            "a signed policy needs a serial", where=str(policy), remedy="serial = 1 in its text"
        )
    envelope = sign_policy_text(data, [load_private_key(read_part(path)) for path in key])
    try:
        output.write_bytes(envelope)
    except OSError as error:
        raise EnvironmentFault(f"cannot write: {error.strerror}", where=str(output)) from error
    sys.stdout.write(f"{output}: {read.id}, serial {read.serial}, {len(key)} signatures\n")


@app.command()
def trust(
    keys: Annotated[
        list[Path], typer.Argument(metavar="KEY...", help="Ed25519 public keys (PEM).")
    ],
    threshold: Annotated[int, typer.Option(help="How many of them have to sign.")] = 1,
) -> None:
    """Believe policies that these keys sign, and no others. Older issues are refused from then."""
    pems = [read_part(path) for path in keys]
    believed = PolicyFolder(wiring.policy_home()).believe(pems, threshold)
    for pem in believed.keys:
        sys.stdout.write(f"{key_id(load_public_key(pem.encode()))}\n")
