"""What a policy demands beyond the layers: each rule holds, fails, or cannot be told."""

from __future__ import annotations

import importlib.resources
from collections.abc import Sequence
from dataclasses import replace

import pytest

from undercroft.appraise.model import Judgement, stated
from undercroft.appraise.pipeline import appraise, verify_evidence
from undercroft.appraise.rules import answered, appraise_rules, has_rules
from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.ear import Tier
from undercroft.policy import (
    Action,
    BootRules,
    Expression,
    Policy,
    Requirement,
    RunningRules,
    SecureBootMode,
    SecureKernelRules,
    parse_policy,
)
from undercroft.testing.guest import FACTS, NOW, SimulatedGuest

DEFAULT = parse_policy(
    (importlib.resources.files("undercroft.policy") / "policies" / "default.toml").read_text()
)


def finding(name: str, outcome: Outcome = Outcome.PASS, **details: JsonValue) -> Finding:
    return Finding(name, outcome, name, {k.replace("_", "-"): v for k, v in details.items()})


def judged(policy: Policy, *findings: Finding, now: int = NOW) -> list[Judgement]:
    return list(appraise_rules(map(stated, findings), policy, "demo", now))


def one(policy: Policy, *findings: Finding) -> Judgement:
    (judgement,) = judged(policy, *findings)
    return judgement


def booting(**rules: object) -> Policy:
    boot = replace(BootRules((0,), Requirement.REQUIRED), **rules)  # type: ignore[arg-type]
    return replace(DEFAULT, boot=boot)


def running(otherwise: Action = Action.WARN, **rules: object) -> Policy:
    return replace(DEFAULT, running=RunningRules(otherwise=otherwise, **rules))  # type: ignore[arg-type]


def test_a_policy_without_rules_adds_nothing() -> None:
    assert not has_rules(DEFAULT)
    assert judged(DEFAULT) == []
    assert not has_rules(running())


@pytest.mark.parametrize(
    ("mode", "flags", "tier"),
    [
        (SecureBootMode.USER, {"DeployedMode": 0}, Tier.AFFIRMING),
        (SecureBootMode.USER, {"DeployedMode": 1}, Tier.AFFIRMING),
        (SecureBootMode.DEPLOYED, {"DeployedMode": 1}, Tier.AFFIRMING),
        (SecureBootMode.DEPLOYED, {"DeployedMode": 0}, Tier.CONTRAINDICATED),
        (SecureBootMode.DEPLOYED, {}, Tier.CONTRAINDICATED),
    ],
)
def test_the_mode_of_secure_boot(mode: SecureBootMode, flags: dict[str, int], tier: Tier) -> None:
    seen = Finding("secureboot.mode", Outcome.PASS, "mode", dict(flags))
    judgement = one(booting(secure_boot_mode=mode), seen)
    assert judgement.tier is tier
    assert judgement.finding.id == "policy.boot.secure-boot-mode"


def test_what_is_not_shown_is_undetermined() -> None:
    for policy in (
        booting(secure_boot_mode=SecureBootMode.USER),
        booting(authorities=("*",)),
        booting(sbat=(("shim", 1),)),
        running(kernel_minimum="6.1"),
        running(modules=("*",)),
        running(notable=("*",)),
        running(bpf=("tag:*",)),
        running(devices=("*",)),
    ):
        judgement = one(policy)
        assert judgement.finding.outcome is Outcome.UNKNOWN
        assert judgement.tier in (Tier.NONE, Tier.CONTRAINDICATED)
        assert "no finding" in judgement.finding.summary
        failed = [
            finding(name, Outcome.FAIL)
            for name in ("secureboot.mode", "secureboot.authorities", "secureboot.sbat",
                         "kernel.reference", "kernel.modules.crossview", "kernel.notable",
                         "kernel.bpf.watchers", "launch.vm-descriptor")
        ]  # fmt: skip
        assert one(policy, *failed).finding.outcome is Outcome.UNKNOWN


def test_authorities_by_name() -> None:
    seen = finding("secureboot.authorities", authorities=["CN=Debian Secure Boot CA", "CN=Eve"])
    judgement = one(booting(authorities=("CN=Debian*",)), seen)
    assert judgement.tier is Tier.CONTRAINDICATED
    assert judgement.finding.details == {
        "rule": "boot.authorities",
        "evidence": "secureboot.authorities",
        "expected": ["CN=Debian*"],
        "found": ["CN=Eve"],
        "suggestion": "allow it in boot.authorities, or remove its key from db",
    }
    assert "CN=Eve verified an image" in judgement.finding.summary
    assert one(booting(authorities=("CN=*",)), seen).tier is Tier.AFFIRMING
    assert one(booting(authorities=()), seen).tier is Tier.CONTRAINDICATED


@pytest.mark.parametrize(
    ("level", "tier"),
    [(4, Tier.AFFIRMING), (5, Tier.AFFIRMING), (3, Tier.CONTRAINDICATED)],
)
def test_the_sbat_level(level: int, tier: Tier) -> None:
    seen = finding("secureboot.sbat", generations={"shim": level, "grub": 9})
    assert one(booting(sbat=(("shim", 4),)), seen).tier is tier
    absent = one(booting(sbat=(("systemd-boot", 1),)), seen)
    assert absent.finding.outcome is Outcome.UNKNOWN
    no_shim = one(booting(sbat=(("shim", 1),)), finding("secureboot.sbat"))
    assert no_shim.finding.outcome is Outcome.UNKNOWN


@pytest.mark.parametrize(
    ("release", "tier"),
    [
        ("6.1.0-56-cloud-amd64", Tier.AFFIRMING),
        ("6.1.0-100-amd64", Tier.AFFIRMING),
        ("6.12.1", Tier.AFFIRMING),
        ("6.1.0-9-amd64", Tier.WARNING),
        ("mine", Tier.WARNING),
    ],
)
def test_the_least_kernel(release: str, tier: Tier) -> None:
    judgement = one(
        running(kernel_minimum="6.1.0-56"), finding("kernel.reference", release=release)
    )
    assert judgement.tier is tier


def test_modules_and_devices() -> None:
    seen = finding("kernel.modules.crossview", modules=["virtio_net", "nft_ct"])
    assert one(running(modules=("virtio_*", "nft_*")), seen).tier is Tier.AFFIRMING
    judgement = one(running(modules=("virtio_*",)), seen)
    assert (judgement.tier, judgement.finding.details["found"]) == (Tier.WARNING, ["nft_ct"])
    machine = finding("launch.vm-descriptor", devices={"net0": "virtio-net", "rng": "virtio-rng"})
    assert one(running(devices=("virtio-*",)), machine).tier is Tier.AFFIRMING
    judgement = one(running(devices=()), machine)
    assert "1 more" in judgement.finding.summary
    for strange in ("one", 5):
        odd = finding("kernel.modules.crossview", modules=strange)
        assert one(running(modules=("*",)), odd).finding.outcome is Outcome.UNKNOWN


def test_what_traces_and_probes() -> None:
    things: list[JsonValue] = [
        {"kind": "ftrace", "text": "2 functions are traced", "foreign": []},
        {"kind": "kprobe", "text": "a kprobe (INT3) at do_exit", "foreign": []},
    ]
    seen = finding("kernel.notable", notable=things)
    assert one(running(notable=("ftrace: *", "kprobe: *do_exit")), seen).tier is Tier.AFFIRMING
    judgement = one(running(notable=("ftrace: *",)), seen)
    assert judgement.tier is Tier.WARNING
    assert judgement.finding.details["found"] == ["kprobe: a kprobe (INT3) at do_exit"]
    odd = finding("kernel.notable", notable="x")
    assert one(running(notable=("*",)), odd).finding.outcome is Outcome.UNKNOWN


PROGRAM: dict[str, JsonValue] = {"tag": "6deef7357e7b4530", "name": "guard", "uid": 0}
WATCHED = finding("kernel.bpf.watchers", Outcome.UNKNOWN, count=1, anomalies=[PROGRAM])


def test_bpf_programs_by_tag_name_or_owner() -> None:
    for allowed in ("tag:6deef7357e7b4530", "name:gu*", "uid:0"):
        assert one(running(bpf=(allowed,)), WATCHED).tier is Tier.AFFIRMING
        assert answered(WATCHED, running(bpf=(allowed,)))
    judgement = one(running(bpf=("tag:0000",)), WATCHED)
    assert judgement.tier is Tier.WARNING
    assert "tag:6deef7357e7b4530, name:guard, uid:0" in judgement.finding.summary
    nobody = finding("kernel.bpf.watchers")
    assert one(running(bpf=()), nobody).tier is Tier.AFFIRMING
    assert not answered(nobody, running(bpf=("tag:0000",)))
    assert not answered(WATCHED, running(bpf=("tag:0000",)))
    assert not answered(WATCHED, DEFAULT)
    assert not answered(finding("other", Outcome.UNKNOWN), running(bpf=("tag:*",)))


@pytest.mark.parametrize(
    "details",
    [{"count": 2, "anomalies": [PROGRAM]}, {"anomalies": 5}, {}, {"count": 0, "anomalies": []}],
    ids=repr,
)
def test_bpf_programs_that_were_not_all_told(details: dict[str, JsonValue]) -> None:
    seen = finding("kernel.bpf.watchers", Outcome.UNKNOWN, **details)
    assert one(running(bpf=("tag:*",)), seen).finding.outcome is Outcome.UNKNOWN
    assert not answered(seen, running(bpf=("tag:*",)))


def test_an_answered_fact_keeps_nobody_from_being_affirmed() -> None:
    guest = SimulatedGuest(facts=(*FACTS, WATCHED))
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    facts = (*DEFAULT.secure_kernel.facts, WATCHED.id)
    demanding = replace(
        DEFAULT, secure_kernel=SecureKernelRules(facts, DEFAULT.secure_kernel.unknown)
    )
    assert appraise(verified, guest.references, demanding, NOW).verdict is Tier.NONE
    answering = replace(demanding, running=RunningRules(bpf=("name:guard",)))
    assert appraise(verified, guest.references, answering, NOW).verdict is Tier.AFFIRMING


def expression(expect: str, when: str = "", **more: object) -> Policy:
    rule = Expression("mine", expect, when, **more)  # type: ignore[arg-type]
    return replace(DEFAULT, rules=(rule,))


TEXT = finding("kernel.text", bytes=14, names=["a", "b"])


@pytest.mark.parametrize(
    ("expect", "outcome"),
    [
        ("findings['kernel.text'].details.bytes > 13", Outcome.PASS),
        ("findings['kernel.text'].details.names.all(n, n in ['a', 'b'])", Outcome.PASS),
        ("every.exists(f, f.id == 'kernel.text' && f.outcome == 'pass')", Outcome.PASS),
        ("guest == 'demo' && now > timestamp('2023-01-01T00:00:00Z')", Outcome.PASS),
        ("findings['kernel.text'].details.bytes > 14", Outcome.FAIL),
        ("findings['no.such'].details.bytes > 14", Outcome.UNKNOWN),
        ("findings['kernel.text'].details.bytes", Outcome.UNKNOWN),
        ("findings['kernel.text'].details.bytes / 0 == 1", Outcome.UNKNOWN),
        ("findings['kernel.text'].details.bytes + 'a' == 'b'", Outcome.UNKNOWN),
        ("int('x') == 1", Outcome.UNKNOWN),
        ("9223372036854775807 + findings['kernel.text'].details.bytes > 0", Outcome.UNKNOWN),
    ],
)
def test_expressions(expect: str, outcome: Outcome) -> None:
    judgement = one(expression(expect), TEXT)
    assert judgement.finding.outcome is outcome
    tiers = {Outcome.PASS: Tier.AFFIRMING, Outcome.FAIL: Tier.CONTRAINDICATED}
    assert judgement.tier is tiers.get(outcome, Tier.CONTRAINDICATED)
    assert judgement.finding.id == "policy.rules.mine"


def test_what_cannot_be_evaluated_is_never_just_a_warning() -> None:
    judgement = one(expression("findings['x'].outcome == 'pass'", otherwise=Action.WARN))
    assert judgement.tier is Tier.NONE
    judgement = one(expression("false", otherwise=Action.WARN, why="because", suggest="do"))
    assert judgement.tier is Tier.WARNING
    assert judgement.finding.summary == "because"
    assert judgement.finding.details["suggestion"] == "do"


def test_a_rule_that_does_not_apply() -> None:
    judgement = one(expression("false", "guest == 'other'"))
    assert (judgement.tier, judgement.finding.outcome) == (None, Outcome.PASS)
    assert one(expression("true", "guest == 'demo'")).tier is Tier.AFFIRMING
    assert one(expression("true", "guest")).finding.outcome is Outcome.UNKNOWN


def test_of_several_findings_of_one_id_the_worst_is_seen() -> None:
    seen: Sequence[Finding] = (
        *(finding("ima.file", one) for one in (Outcome.PASS, Outcome.FAIL, Outcome.UNKNOWN)),
    )  # fmt: skip
    assert one(expression("findings['ima.file'].outcome == 'fail'"), *seen).tier is Tier.AFFIRMING


def test_a_policy_that_has_expired_affirms_nothing() -> None:
    policy = replace(DEFAULT, expires=NOW + 10)
    (judgement,) = judged(policy, now=NOW + 9)
    assert (judgement.tier, judgement.finding.outcome) == (None, Outcome.PASS)
    (judgement,) = judged(policy, now=NOW + 10)
    assert (judgement.tier, judgement.finding.outcome) == (Tier.NONE, Outcome.UNKNOWN)
    assert "expired" in judgement.finding.summary


def test_rules_are_judged_with_everything_else() -> None:
    guest = SimulatedGuest()
    challenge = guest.challenge()
    verified = verify_evidence(guest.evidence(challenge), guest.trust, challenge)
    good = expression("findings['boot.pcr.0'].outcome == 'pass'")
    assert appraise(verified, guest.references, good, NOW).verdict is Tier.AFFIRMING
    bad = expression("findings['boot.pcr.0'].outcome == 'fail'")
    appraisal = appraise(verified, guest.references, bad, NOW)
    assert [j.finding.id for j in appraisal.unmet()] == ["policy.rules.mine"]
