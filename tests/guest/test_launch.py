"""The launch and the machine's descriptor on a real guest: measured, proven, watched."""

from __future__ import annotations

import datetime as dt
import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from undercroft import wiring
from undercroft.appraise.model import Appraisal
from undercroft.appraise.pipeline import appraise, verify_evidence
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import Tier
from undercroft.formats.eventlog import parse_eventlog
from undercroft.formats.evidence import encode_evidence, parse_evidence
from undercroft.formats.evidence.interval import encode_chain, parse_chain
from undercroft.formats.launch import EPOCH, TAG_RECORD, LaunchEvent, parse_launch_event
from undercroft.guests.run import Guest, RunOptions
from undercroft.securekernel.hypervisor.qmp import QmpClient
from undercroft.securekernel.inspect import SecureKernel
from undercroft.service.casefile import EVIDENCE
from undercroft.service.collect import collect
from undercroft.service.machine import machine_facts
from undercroft.service.ownguest import connect_vtpm, enrol_guest, guest_references
from undercroft.service.verifier import new_challenge

pytestmark = pytest.mark.guest
POLICY = wiring.shipped_policy("direct-boot")


def attest(guest: Guest, home: Path) -> Appraisal:
    info, now = guest.info, dt.datetime.now(dt.UTC)
    target = wiring.open_target(f"qemu:{info.name}")
    with connect_vtpm(info) as client:
        trust = enrol_guest(client, info, home, now)
        references = guest_references(info, home, trust.ek_certificate)
        challenge = new_challenge(POLICY, int(now.timestamp()))
        kernel = SecureKernel(target.guest, target.image, target.kernel.library)
        evidence = collect(kernel, client, challenge, lambda: machine_facts(info, client))
    verified = verify_evidence(evidence, trust, challenge)
    return appraise(verified, references, POLICY, int(dt.datetime.now(dt.UTC).timestamp()))


def found(appraisal: Appraisal, prefix: str) -> dict[str, Finding]:
    return {f.id: f for f in appraisal.findings if f.id.startswith(prefix)}


def appeared(finding: Finding) -> list[JsonValue]:
    names = finding.details["appeared"]
    assert isinstance(names, list | tuple)
    return [str(name).partition(" ")[0] for name in names]


def test_what_is_plugged_in_later_is_found(
    start_guest: Callable[..., Guest], guest_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERCROFT_HOME", str(guest_home))
    guest = start_guest()
    honest = attest(guest, guest_home)
    assert honest.verdict is Tier.AFFIRMING, [j.finding for j in honest.unmet()]
    for prefix in ("launch.", "descriptor."):
        assert all(f.outcome is Outcome.PASS for f in found(honest, prefix).values())
    assert {*found(honest, "launch.")} == {
        "launch.start",
        "launch.key",
        "launch.manifest",
        "launch.vm-descriptor",
        "launch.guest-kernel",
        "launch.records",
    }

    with QmpClient(guest.info.run_qmp) as qmp:
        null: dict[str, JsonValue] = {"type": "null", "data": {}}
        qmp.execute("chardev-add", {"id": "spy", "backend": null})
        qmp.execute("object-add", {"qom-type": "rng-builtin", "id": "more"})
        qmp.execute("blockdev-add", {"driver": "null-co", "node-name": "disk"})
        qmp.execute("netdev_add", {"type": "user", "id": "wire"})
    plugged = attest(guest, guest_home)
    assert plugged.verdict is Tier.CONTRAINDICATED
    facts = found(plugged, "descriptor.")
    assert appeared(facts["descriptor.devices"]) == [
        "block-node/disk",
        "chardev/spy",
        "object/more",
    ]
    assert facts["descriptor.network"].outcome is Outcome.FAIL
    assert facts["descriptor.machine"].outcome is Outcome.PASS

    with QmpClient(guest.info.run_qmp) as qmp:
        qmp.execute("chardev-remove", {"id": "spy"})
        qmp.execute("object-del", {"id": "more"})
        qmp.execute("blockdev-del", {"node-name": "disk"})
        qmp.execute("netdev_del", {"id": "wire"})
    pulled = attest(guest, guest_home)
    assert all(f.outcome is Outcome.PASS for f in found(pulled, "descriptor.").values())
    assert pulled.verdict is Tier.CONTRAINDICATED, "PCR 19 remembers"
    assert found(pulled, "launch.records")["launch.records"].outcome is Outcome.FAIL


def test_the_host_vouches_for_the_guest(
    running_guest: Guest, guest_home: Path, tmp_path: Path
) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "undercroft.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env={**os.environ, "UNDERCROFT_HOME": str(guest_home)},
        )

    target, case = f"qemu:{running_guest.info.name}", tmp_path / "case"
    done = run("evidence", "collect", target, "-o", case, "--host-tpm", "--json")
    assert done.returncode == 0, done.stdout + done.stderr
    findings = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["host.layer"]["outcome"] == "pass"
    expected = "hardware" if Path("/dev/tpmrm0").exists() else "stand-in"
    assert findings["host.tpm"]["details"]["tpm"] == expected
    if expected == "stand-in":
        assert "CN=" in findings["host.tpm"]["details"]["ek-issuer"]
        assert "neither its boot log" in findings["host.boot"]["summary"]
    assert run("verify", case).returncode == 0

    # The host's layer of one moment beside the guest's quote of another.
    later = tmp_path / "later"
    assert run("evidence", "collect", target, "-o", later, "--host-tpm").returncode == 0
    first = parse_evidence((case / EVIDENCE).read_bytes())
    second = parse_evidence((later / EVIDENCE).read_bytes())
    mixed = replace(second, host_layer=first.host_layer)
    (later / EVIDENCE).write_bytes(encode_evidence(mixed))
    refused = run("verify", later)
    assert refused.returncode == 5
    assert "host.guest" in refused.stderr

    without = replace(first, host_layer=None)
    (case / EVIDENCE).write_bytes(encode_evidence(without))
    assert run("verify", case).returncode == 4


@pytest.mark.slow
def test_what_the_write_traps_saw_is_in_pcr_19(
    start_guest: Callable[..., Guest], guest_home: Path, tmp_path: Path
) -> None:
    def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "undercroft.cli", *map(str, arguments)],
            capture_output=True,
            text=True,
            check=False,
            timeout=600,
            env={**os.environ, "UNDERCROFT_HOME": str(guest_home)},
        )

    guest = start_guest(RunOptions(one_thread=True))
    target = f"qemu:{guest.info.name}"
    attached = run(
        "attach", target, "--traps", "observe", "--epoch", "2", "--seconds", "20", "--json"
    )
    assert "kernel.recorded" not in attached.stdout, attached.stdout
    with connect_vtpm(guest.info) as client:
        launch = client.current_launch_log()
    first = [event for event in launch_records(launch) if event.name == EPOCH]
    assert first, attached.stdout + attached.stderr

    case = tmp_path / "case"
    done = run("evidence", "collect", target, "-o", case, "--traps", "5", "--host-tpm", "--json")
    findings = {finding["id"]: finding for finding in json.loads(done.stdout)["findings"]}
    assert findings["launch.epochs"]["outcome"] == "unknown"
    assert "started 2 times" in findings["launch.epochs"]["summary"]
    assert findings["host.layer"]["outcome"] == "pass"
    evidence = parse_evidence((case / EVIDENCE).read_bytes())
    assert evidence.epochs is not None

    # The chain without its last epoch, and the evidence without the chain's end.
    chain = parse_chain(evidence.epochs)
    shorter = replace(evidence, epochs=encode_chain(chain[:-1]) if len(chain) > 1 else b"")
    (case / EVIDENCE).write_bytes(encode_evidence(shorter))
    assert run("verify", case).returncode == 5


def launch_records(log: bytes) -> list[LaunchEvent]:
    events = [parse_launch_event(event.data) for event in parse_eventlog(log).events[1:]]
    return [event for event in events if event.tag == TAG_RECORD]
