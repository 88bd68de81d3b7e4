"""``undercroft demo``: the whole story on a real guest, with nothing faked."""

from __future__ import annotations

import contextlib
import datetime as dt
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table
from rich.text import Text

from undercroft import wiring
from undercroft.appraise.model import Appraisal
from undercroft.base import EnvironmentFault, Finding, JsonValue, Outcome, UndercroftError
from undercroft.cli import exit_status, render
from undercroft.cli.guest import AccelOption, build, progress
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import Trust
from undercroft.guests.accel import choose
from undercroft.guests.attacks import (
    HIDDEN_PROCESS,
    PATCHED_FUNCTION,
    hide_task,
    inline_patch,
    pid_of,
)
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.run import Guest, RunOptions, start
from undercroft.packages import Refresh
from undercroft.policy import Policy
from undercroft.reference.model import ReferenceSet
from undercroft.securekernel.inspect import SecureKernel
from undercroft.service.casefile import EVIDENCE, Case, load_case, save_case, save_result
from undercroft.service.collect import collect
from undercroft.service.detect import ByteWatch, poll_until_failed
from undercroft.service.machine import machine_facts
from undercroft.service.ownguest import (
    connect_vtpm,
    enrol_guest,
    planned_references,
    with_launch,
)
from undercroft.service.verifier import (
    ResultSigner,
    appraise_case,
    appraised_at,
    new_challenge,
)

NAME = "demo"
POLL_S = 0.1
_TASKS = "kernel.tasks.crossview"
_TEXT = "kernel.text"


class NotAsToldError(EnvironmentFault):
    """The demonstration did not go as it should: a bug, and not what the reader came to see."""


@dataclass
class _Stage:
    """Where the demonstration speaks: a person's terminal, or one JSON document at the end."""

    as_json: bool
    facts: dict[str, JsonValue] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.console = render.console(record=True)

    def act(self, number: int, title: str) -> None:
        """Open an act."""
        self.show(Text(f"\n{number}. {title}", style="bold"))

    def show(self, what: object) -> None:
        """Show something to a person; nothing with --json."""
        if not self.as_json:
            self.console.print(what)

    def note(self, **facts: JsonValue) -> None:
        """Remember facts for the JSON document."""
        self.facts.update(facts)


@dataclass
class _Scene:
    """A running guest with its secure kernel, and all that is needed to attest it."""

    guest: Guest
    kernel: SecureKernel
    trust: Trust
    references: ReferenceSet
    policy: Policy
    signer: ResultSigner

    def attest(self) -> tuple[Case, Appraisal, str]:
        """Challenge, collect, appraise and sign; return case, appraisal and EAR."""
        now = int(time.time())
        challenge = new_challenge(self.policy, now)
        with connect_vtpm(self.guest.info) as client:
            info = self.guest.info
            evidence = collect(self.kernel, client, challenge, lambda: machine_facts(info, client))
        case = Case(evidence, challenge, self.trust, self.references, self.policy)
        appraisal = appraise_case(case, int(time.time()))
        return case, appraisal, self.signer.sign(appraisal)

    def save(self, folder: Path, case: Case, ear: str) -> None:
        """Keep a case where the reader finds it."""
        save_case(folder, case)
        save_result(folder, ear, self.signer.public)


def demo(
    accel: Annotated[
        AccelOption, typer.Option(help="auto takes KVM if a Linux guest really runs under it.")
    ] = AccelOption.AUTO,
    keep: Annotated[bool, typer.Option(help="Leave the guest running at the end.")] = False,
    svg: Annotated[Path | None, typer.Option(help="Save what was shown as a picture, too.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON document.")] = False,
) -> None:
    """Tell the whole story on a real guest: build, boot, prove, attest, attack, detect.

    Exit status 0 if everything went as told: the honest guest affirmed, both attacks found.
    """
    stage = _Stage(as_json)
    stage.act(1, "A guest from packages whose signatures lead to the archive's keys")
    with progress("building the micro guest") as show:
        built = build(refresh=Refresh.AUTO, with_adversaries=True, show=show)
    stage.show(_packages(built))
    options = RunOptions(accel=accel.choice())
    home = wiring.home()
    with progress("running the firmware alone, to learn what it writes into itself"):
        choice = choose(options.accel, home, built.kernel.path)
        references = planned_references(built, options, choice.accel, home)
    stage.show(
        f"known before it boots: {len(references.pcrs)} PCR values, "
        f"{sum(map(len, references.events.values()))} boot events, {len(references.files)} files"
    )
    folder = home / "cases" / NAME
    if folder.exists():
        shutil.rmtree(folder)
    with _running(built, options, stage) as (guest, started):
        _play(stage, guest, started, references, folder, keep=keep)
    _offline(stage, folder)
    if svg is not None:
        stage.console.save_svg(str(svg), title="undercroft demo")
    if as_json:
        sys.stdout.write(json.dumps(stage.facts, indent=1) + "\n")
    raise typer.Exit(exit_status.AFFIRMED)


@contextmanager
def _running(
    built: GuestBuild, options: RunOptions, stage: _Stage
) -> Iterator[tuple[Guest, float]]:
    """Start the guest and stop it at the end, whatever happens."""
    stage.act(2, "It boots: QEMU, OVMF, a vTPM, IMA; nothing of ours inside")
    home = wiring.home()
    with contextlib.suppress(EnvironmentFault):  # there may be none
        Guest.load(home, NAME).stop()
    started = time.monotonic()
    with progress("booting") as show:
        guest = start(built, home, NAME, options, now=dt.datetime.now(dt.UTC), say=show.say)
        try:
            guest.wait_ready(120.0)
        except UndercroftError:
            guest.stop()
            raise
    info = guest.info
    stage.show(
        f"{info.kernel_release} under {info.accel}, {info.cpus} vCPUs, {info.memory_mb} MiB; "
        f"up after {time.monotonic() - started:.1f} s (process {info.qemu.pid})"
    )
    stage.note(accel=info.accel, kernel=info.kernel_release)
    try:
        yield guest, started
    except BaseException:
        guest.stop()
        raise


def _play(
    stage: _Stage,
    guest: Guest,
    started: float,
    references: ReferenceSet,
    folder: Path,
    *,
    keep: bool,
) -> None:
    stage.act(3, "The secure kernel looks at it from outside")
    target = wiring.open_target(f"qemu:{NAME}")
    kernel = SecureKernel(target.guest, target.image, target.kernel.library, target.files)
    stage.show(render.findings_table(kernel.facts()))
    stage.show(_rules(kernel))

    stage.act(4, "Attestation: one quote over boot, files and what the secure kernel saw")
    with connect_vtpm(guest.info) as client:
        trust = enrol_guest(client, guest.info, wiring.home(), dt.datetime.now(dt.UTC))
    signer = ResultSigner.load(wiring.home() / "verifier")
    references = with_launch(references, guest.info, wiring.home(), trust.ek_certificate)
    policy = wiring.shipped_policy("direct-boot")
    scene = _Scene(guest, kernel, trust, references, policy, signer)
    case, appraisal, ear = scene.attest()
    boot_to_verdict = time.monotonic() - started
    stage.show(render.appraisal_view(appraisal))
    stage.show(f"verdict {boot_to_verdict:.1f} s after the machine was switched on")
    stage.show(Text(f"EAR (JWT): {ear[:100]}… {len(ear)} characters", style="dim"))
    stage.note(boot_to_verdict_s=boot_to_verdict, verdict=appraisal.verdict.label, ear=ear)
    _expect(appraisal, Tier.AFFIRMING)
    scene.save(folder / "honest", case, ear)

    _attack_text(stage, scene, folder / "inline-patch")
    _attack_tasks(stage, scene, folder / "hidden-process")
    if keep:
        stage.show(f"the guest {NAME} keeps running; `undercroft guest stop {NAME}` ends it")
    else:
        guest.stop()


def _attack_text(stage: _Stage, scene: _Scene, folder: Path) -> None:
    stage.act(5, f"An adversary in the guest patches {PATCHED_FUNCTION}")
    image, located = scene.kernel.image, scene.kernel.proof.kernel
    if located is None:
        raise NotAsToldError("the kernel was lost", where=NAME)
    address = located.base + image.offset(PATCHED_FUNCTION)
    with (
        inline_patch(scene.guest, address) as adversary,
        ByteWatch(scene.kernel, address, 16) as watch,
    ):
        adversary.switch(True)
        finding, found = poll_until_failed(scene.kernel.proof.sweep, _TEXT, interval=POLL_S)
        _told(stage, finding, found, watch.changed, "inline_patch_found_s")
        for place in render.mismatches([finding]):
            stage.show(render.mismatch_view(place))
        case, appraisal, ear = scene.attest()
        _contraindicated(stage, appraisal, _TEXT)
        scene.save(folder, case, ear)


def _attack_tasks(stage: _Stage, scene: _Scene, folder: Path) -> None:
    stage.act(6, f"Another hides the process {HIDDEN_PROCESS!r} from the guest's own tools")
    pid = pid_of(scene.guest, HIDDEN_PROCESS)
    with hide_task(scene.guest, pid) as adversary:
        begun = time.monotonic()
        adversary.switch(True)
        finding, found = poll_until_failed(scene.kernel.facts, _TASKS, interval=POLL_S)
        _told(stage, finding, found, begun, "hidden_process_found_s")
        stage.show(_hidden(finding))
        case, appraisal, ear = scene.attest()
        _contraindicated(stage, appraisal, _TASKS)
        scene.save(folder, case, ear)
        adversary.switch(False)


def _told(stage: _Stage, finding: Finding, found: float, changed: float | None, key: str) -> None:
    if changed is None:
        raise NotAsToldError("the change itself was not seen", where=finding.id)
    stage.show(render.findings_table([finding]))
    stage.show(f"found {1000 * (found - changed):.0f} ms after it was done, polling at {POLL_S} s")
    stage.note(**{key: found - changed})


def _expect(appraisal: Appraisal, tier: Tier) -> None:
    if appraisal.verdict is not tier:
        raise NotAsToldError(
            "the verdict is another one", expected=tier.label, got=appraisal.verdict.label
        )


def _contraindicated(stage: _Stage, appraisal: Appraisal, finding_id: str) -> None:
    _expect(appraisal, Tier.CONTRAINDICATED)
    if not any(f.id == finding_id and f.outcome is Outcome.FAIL for f in appraisal.findings):
        raise NotAsToldError("the verdict rests on something else", expected=finding_id)
    for judgement in appraisal.unmet():
        stage.show(f"  {judgement.finding.id}: {judgement.finding.summary}")
    stage.show(render.verdict_line(appraisal))


def _offline(stage: _Stage, folder: Path) -> None:
    stage.act(7, "Anyone can reproduce it offline, from the saved evidence alone")
    verdicts: dict[str, JsonValue] = {}
    for name in ("honest", "inline-patch", "hidden-process"):
        case = folder / name
        again = appraise_case(load_case(case), appraised_at(case))
        verdicts[name] = again.verdict.label
        line = Text(f"./dev run verify {render.shown(case)}: ")
        stage.show(line.append(render.verdict_line(again)))
    stage.show(_flipped(folder / "honest"))
    stage.note(offline=verdicts, cases=str(folder))


def _flipped(case: Path) -> Text:
    """Flip one byte of a copy of the evidence and return how it is refused."""
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(shutil.copytree(case, Path(folder) / "case"))
        evidence = bytearray((copy / EVIDENCE).read_bytes())
        evidence[len(evidence) // 2] ^= 1
        (copy / EVIDENCE).write_bytes(evidence)
        try:
            appraise_case(load_case(copy), appraised_at(copy))
        except UndercroftError as error:
            return Text(f"with one bit of the evidence flipped: refused, {error}")
    raise NotAsToldError("changed evidence was accepted", where=str(case))


def _packages(built: GuestBuild) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("package", "version", "sha256", "Release file", "signed by"):
        table.add_column(heading, no_wrap=True)
    for package in built.packages:
        source = package.provenance
        table.add_row(
            package.name,
            package.version,
            package.sha256[:12],
            source.release_sha256[:12],
            source.signer[-16:],
        )
    return table


def _rules(kernel: SecureKernel) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("how the kernel patched itself", no_wrap=True)
    table.add_column("sites", justify="right")
    table.add_column("changed", justify="right")
    replay = kernel.proof.replay
    for label, counts in (replay.statistics() if replay else {}).items():
        if isinstance(counts, dict):
            table.add_row(label, f"{counts.get('sites', 0):,}", f"{counts.get('changed', 0):,}")
    return table


def _hidden(finding: Finding) -> Table:
    table = Table(box=None, pad_edge=False)
    for heading in ("pid", "name", "seen in", "missing from"):
        table.add_column(heading)
    anomalies = finding.details.get("anomalies")
    for anomaly in anomalies if isinstance(anomalies, list | tuple) else ():
        if isinstance(anomaly, dict):
            seen, missing = anomaly.get("seen_in"), anomaly.get("missing_from")
            table.add_row(
                str(anomaly.get("pid")), str(anomaly.get("comm")), _join(seen), _join(missing)
            )
    return table


def _join(value: JsonValue) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else ""
