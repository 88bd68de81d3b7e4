"""Two layers, and every way to put together what does not belong together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
import pytest

from undercroft import wiring
from undercroft.appraise.host import HostRules, appraise_host
from undercroft.appraise.model import Judgement
from undercroft.appraise.pipeline import VerifiedEvidence, appraise, verify_evidence
from undercroft.base import (
    Finding,
    FormatError,
    HashAlgorithm,
    Outcome,
    PcrBank,
    VerificationError,
)
from undercroft.formats.descriptor import VmDescriptor, descriptor_digest, encode_descriptor
from undercroft.formats.ear import Tier
from undercroft.formats.evidence import Challenge, Evidence, Trust
from undercroft.formats.evidence.hostlayer import (
    HostLayer,
    HostTpmKind,
    encode_host_layer,
    last_modified_of,
    parse_host_layer,
)
from undercroft.formats.launch import LAUNCH_PCRS, VM_DESCRIPTOR
from undercroft.formats.tpm import NvCertifyInfo
from undercroft.testing.endorsement import SimulatedEk
from undercroft.testing.guest import (
    FACTS,
    NOW,
    SELECTION,
    SimulatedGuest,
    encode_log,
    standard_boot,
)
from undercroft.testing.host import SimulatedHost
from undercroft.testing.launch import launch_events, perform_launch, use_launch_key
from undercroft.testing.tpm_vendor import SimulatedTpmVendor
from undercroft.verify.deepquote import HOST_SELECTION, VerifiedHost

EK = b"the EK certificate of this guest"
DESCRIPTOR = encode_descriptor(
    VmDescriptor(
        name="demo",
        hypervisor=bytes(32),
        machine="q35",
        accelerator="kvm",
        cpu="host",
        vcpus=1,
        memory=1,
        firmware=bytes(32),
        variables=bytes(32),
        kernel=bytes(32),
        initrd=bytes(32),
        command_line="",
        devices={},
        network=(),
        vtpm=HashAlgorithm.SHA256.hash(EK),
    )
)
MACHINE = descriptor_digest(DESCRIPTOR)


@dataclass
class Scene:
    """A guest on a host, and a verifier that knows both."""

    guest: SimulatedGuest
    host: SimulatedHost
    trust: Trust
    challenge: Challenge
    evidence: Evidence

    def layer(self, host: SimulatedHost | None = None) -> HostLayer:
        """What the host says when it is honest."""
        host = host or self.host
        return host.sign(host.claims(self.evidence, MACHINE), self.challenge.nonce)

    def verified(self, layer: HostLayer, **trusted: object) -> VerifiedEvidence:
        evidence = replace(self.evidence, host_layer=encode_host_layer(layer))
        trust = replace(self.trust, **trusted)  # type: ignore[arg-type]
        return verify_evidence(evidence, trust, self.challenge)

    def verify(self, layer: HostLayer, **trusted: object) -> VerifiedHost | None:
        return self.verified(layer, **trusted).host

    def refused(self, layer: HostLayer, **trusted: object) -> str:
        with pytest.raises(VerificationError) as caught:
            self.verify(layer, **trusted)
        return caught.value.check


def challenge(nonce: bytes) -> Challenge:
    pcrs = (*SELECTION[HashAlgorithm.SHA256], *LAUNCH_PCRS)
    return Challenge(
        SimulatedGuest().challenge(nonce=nonce).nonce, {HashAlgorithm.SHA256: pcrs}, NOW
    )


def scene_of(
    nonce: bytes = bytes(range(32)),
    records: int = 2,
    machine: SimulatedGuest | None = None,
    facts: Sequence[Finding] = FACTS,
) -> Scene:
    guest, host = SimulatedGuest(facts=facts), SimulatedHost(machine=machine)
    use_launch_key(guest.attester)
    events = launch_events(
        b"manifest\n",
        [(VM_DESCRIPTOR, DESCRIPTOR)],
        [("epoch", bytes([i])) for i in range(records)],
    )
    log = perform_launch(guest.attester, events)
    asked = challenge(nonce)
    trust = replace(guest.trust, ek_certificate=EK, host_ak_public=host.ak_public)
    return Scene(guest, host, trust, asked, guest.evidence(asked, launch_log=log))


@pytest.fixture
def scene() -> Scene:
    return scene_of()


def test_both_layers_are_proven(scene: Scene) -> None:
    verified = scene.verified(scene.layer())
    host = verified.host
    assert host is not None
    assert (host.counter, host.last_modified) == (1, 0)
    assert host.claimed_tpm is HostTpmKind.STAND_IN
    found = {j.finding.id: (j.finding.outcome, j.tier) for j in appraise_host(verified, None)}
    assert found == {
        "host.layer": (Outcome.PASS, Tier.AFFIRMING),
        "host.tpm": (Outcome.UNKNOWN, None),
        "host.boot": (Outcome.UNKNOWN, None),
    }


def test_the_result_says_what_kind_of_tpm_the_host_has(scene: Scene) -> None:
    layer = replace(scene.layer(), claimed_tpm=HostTpmKind.HARDWARE)
    certificate = SimulatedTpmVendor().ek_certificate(SimulatedEk().private.public_key()).der
    for trusted, outcome, says in (
        ({}, Outcome.UNKNOWN, "nobody checked its EK"),
        ({"host_ek_certificate": certificate}, Outcome.PASS, "is tied to an EK that"),
        ({"host_ek_certificate": b"?"}, Outcome.UNKNOWN, "nobody checked its EK"),
    ):
        findings = appraise_host(scene.verified(layer, **trusted), None)
        (finding,) = (j.finding for j in findings if j.finding.id == "host.tpm")
        assert finding.details["tpm"] == "hardware"
        assert (finding.outcome, says in finding.summary) == (outcome, True)


def test_a_layer_is_read_as_it_was_written(scene: Scene) -> None:
    layer = scene.layer()
    data = encode_host_layer(layer)
    assert parse_host_layer(data) == layer
    other = data.replace(b"gversion\2", b"gversion\1")
    assert other != data
    for bad in (b"", data[:-1], data + b"\0", data.replace(b"stand-in", b"sit-down"), other):
        with pytest.raises(FormatError):
            parse_host_layer(bad)


def test_a_missing_layer_is_not_enough_where_the_host_is_known(scene: Scene) -> None:
    verified = verify_evidence(scene.evidence, scene.trust, scene.challenge)
    (judgement,) = appraise_host(verified, None)
    assert (judgement.finding.outcome, judgement.tier) == (Outcome.UNKNOWN, Tier.NONE)


def test_a_missing_layer_is_visible_where_no_host_is_known(scene: Scene) -> None:
    trust = replace(scene.trust, host_ak_public=b"")
    verified = verify_evidence(scene.evidence, trust, scene.challenge)
    (judgement,) = appraise_host(verified, None)
    assert (judgement.finding.outcome, judgement.tier) == (Outcome.UNKNOWN, None)
    assert scene.verify(scene.layer(), host_ak_public=b"") is None


def test_a_layer_of_another_host_is_refused(scene: Scene) -> None:
    assert scene.refused(scene.layer(SimulatedHost("other"))) == "host.key"


def test_the_layers_of_two_hosts_are_not_put_together(scene: Scene) -> None:
    # The trusted host's name on the quote, and another host's signature under it.
    other = scene.layer(SimulatedHost("other"))
    claimed = replace(other.quote, claimed_ak_public=scene.host.ak_public)
    assert scene.refused(replace(other, quote=claimed)) == "host.quote.signature"


def test_the_counter_of_another_host_is_refused(scene: Scene) -> None:
    mine, other = scene.layer(), scene.layer(SimulatedHost("other"))
    mixed = replace(mine, nv_attest=other.nv_attest, nv_signature=other.nv_signature)
    assert scene.refused(mixed) == "host.nv.signature"


def test_a_stale_layer_is_refused(scene: Scene) -> None:
    # Of the same evidence, but signed for the challenge before.
    nonce = challenge(b"\7" * 32).nonce
    stale = scene.host.sign(scene.host.claims(scene.evidence, MACHINE), nonce)
    assert scene.refused(stale) == "host.binding"


def test_the_quote_of_another_guest_of_the_same_host_is_refused(scene: Scene) -> None:
    other = scene_of(nonce=b"\7" * 32)
    claims = scene.host.claims(other.evidence, MACHINE)
    assert scene.refused(scene.host.sign(claims, scene.challenge.nonce)) == "host.guest"


def test_a_truncated_log_is_refused(scene: Scene) -> None:
    shorter = scene_of(records=1)
    claims = replace(
        scene.host.claims(scene.evidence, MACHINE),
        log_head=scene.host.claims(shorter.evidence).log_head,
    )
    assert scene.refused(scene.host.sign(claims, scene.challenge.nonce)) == "host.log"


def test_another_machine_is_refused(scene: Scene) -> None:
    claims = scene.host.claims(scene.evidence, b"m" * 32)
    assert scene.refused(scene.host.sign(claims, scene.challenge.nonce)) == "host.descriptor"


def test_a_guest_with_another_tpm_than_its_machine_is_refused(scene: Scene) -> None:
    assert scene.refused(scene.layer(), ek_certificate=b"another") == "host.vtpm"


def test_without_a_certificate_the_tpm_is_not_compared(scene: Scene) -> None:
    assert scene.verify(scene.layer(), ek_certificate=b"") is not None


@pytest.mark.parametrize("last", [1, 2, 1 << 40])
def test_a_counter_that_does_not_go_on_is_refused(scene: Scene, last: int) -> None:
    assert scene.refused(scene.layer(), host_counter=last) == "host.rollback"


def test_a_counter_that_goes_on_is_accepted(scene: Scene) -> None:
    scene.layer()
    assert scene.verify(scene.layer(), host_counter=1) is not None


@pytest.mark.parametrize(
    "change",
    [
        lambda claims: replace(claims, counter=99),
        lambda claims: replace(claims, counter=2),
    ],
)
def test_a_changed_claim_is_refused(scene: Scene, change: Callable[..., object]) -> None:
    layer = scene.layer()
    lied = replace(layer, claims=change(layer.claims))  # type: ignore[arg-type]
    assert scene.refused(lied) == "host.binding"


def test_a_counter_that_the_tpm_does_not_show_is_refused(scene: Scene) -> None:
    layer, nonce = scene.layer(), scene.challenge.nonce
    name = scene.host.nv.name
    for info in (
        NvCertifyInfo(name, 0, (9).to_bytes(8, "big")),
        NvCertifyInfo(name, 1, (1).to_bytes(8, "big")),
        NvCertifyInfo(name, 0, b""),
        NvCertifyInfo(b"\0\x0b" + bytes(32), 0, (1).to_bytes(8, "big")),
    ):
        assert scene.refused(scene.host.with_counter(layer, info, nonce)) == "host.counter"
    quote = replace(layer, nv_attest=layer.quote.attest, nv_signature=layer.quote.signature)
    assert scene.refused(quote) == "host.counter"


@pytest.mark.parametrize("attributes", [0x0206_0016, 0x2206_0006])
def test_an_index_that_is_no_counter_is_refused(scene: Scene, attributes: int) -> None:
    scene.host.nv = msgspec.structs.replace(scene.host.nv, attributes=attributes)
    assert scene.refused(scene.layer()) == "host.counter"


def test_a_relabelled_selection_is_refused(scene: Scene) -> None:
    layer = scene.layer()
    bank = layer.quote.claimed_pcrs[0]
    shifted = PcrBank(bank.algorithm, {i + 1: v for i, v in bank.values.items() if i < 14})
    quote = replace(layer.quote, claimed_pcrs=(shifted,))
    assert scene.refused(replace(layer, quote=quote)).startswith("host.quote.")


def test_a_quote_of_fewer_pcrs_of_the_host_is_refused(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    fewer = {HashAlgorithm.SHA256: HOST_SELECTION[HashAlgorithm.SHA256][:-1]}
    monkeypatch.setattr("undercroft.testing.host.HOST_SELECTION", fewer)
    layer = scene.layer()
    assert scene.refused(layer).startswith("host.quote.")


# --- the host's own boot and files --------------------------------------------------------------

HOST = SimulatedGuest(name="host", boot=standard_boot(secure_boot=False), files={"/bin/qemu": b"q"})
RULES = HostRules(HOST.predicted(), wiring.shipped_policy("direct-boot"))


def host_findings(scene: Scene, layer: HostLayer, rules: HostRules | None) -> dict[str, Judgement]:
    judged = appraise_host(scene.verified(layer), rules)
    return {judgement.finding.id: judgement for judgement in judged}


def test_the_hosts_boot_and_files_are_judged_as_a_guests() -> None:
    scene = scene_of(machine=HOST)
    found = host_findings(scene, scene.layer(), RULES)
    assert found["host.boot"].finding.outcome is Outcome.PASS
    assert found.keys() >= {"host.layer", "host.boot", "host.ima.files"}
    assert all(j.tier in (None, Tier.AFFIRMING) for j in found.values()), found


def test_a_host_that_runs_something_else_is_judged() -> None:
    other = SimulatedGuest(
        name="host", boot=standard_boot(secure_boot=False), files={"/bin/qemu": b"changed"}
    )
    scene = scene_of(machine=other)
    found = host_findings(scene, scene.layer(), RULES)
    bad = {name for name, j in found.items() if j.tier is Tier.CONTRAINDICATED}
    assert bad
    assert all(name.startswith("host.ima.") for name in bad)


def test_a_host_that_booted_something_else_is_judged() -> None:
    scene = scene_of(machine=SimulatedGuest(name="host", boot=standard_boot()))
    found = host_findings(scene, scene.layer(), RULES)
    assert any(j.tier is Tier.CONTRAINDICATED for j in found.values())


def test_without_reference_values_the_hosts_logs_are_only_replayed() -> None:
    scene = scene_of(machine=HOST)
    found = host_findings(scene, scene.layer(), None)
    assert found.keys() == {"host.layer", "host.tpm", "host.boot"}
    assert found["host.boot"].finding.outcome is Outcome.UNKNOWN
    assert "boot log and IMA list replay" in found["host.boot"].finding.summary


def test_a_host_without_a_file_list_is_told() -> None:
    scene = scene_of(machine=HOST)
    scene.host.ima_list = None
    found = host_findings(scene, scene.layer(), RULES)
    assert found["host.boot"].finding.outcome is Outcome.UNKNOWN
    assert "no IMA list" in found["host.boot"].finding.summary


def test_the_whole_result_shows_the_host() -> None:
    scene = scene_of(machine=HOST)
    verified = scene.verified(scene.layer())
    policy = wiring.shipped_policy("direct-boot")
    appraisal = appraise(verified, scene.guest.predicted(), policy, NOW, host=RULES)
    assert any(finding.id.startswith("host.ima.") for finding in appraisal.findings)


def test_a_log_that_the_hosts_tpm_does_not_bind_is_refused() -> None:
    scene = scene_of(machine=HOST)
    layer = scene.layer()
    assert layer.eventlog is not None
    assert layer.ima_list is not None
    for other in (
        replace(layer, eventlog=None),
        replace(layer, ima_list=None),
        replace(layer, eventlog=layer.eventlog + b"\0"),
        replace(layer, ima_list=layer.ima_list + b"\0"),
        replace(layer, eventlog=layer.ima_list, ima_list=layer.eventlog),
    ):
        assert scene.refused(other) == "host.binding"


def test_a_log_that_does_not_replay_to_the_hosts_quote_is_refused() -> None:
    scene = scene_of(machine=HOST)
    boot = [one for one in HOST.boot if one.role != "kernel"]
    scene.host.eventlog = encode_log(boot, [HashAlgorithm.SHA256])
    assert scene.refused(scene.layer()).startswith("host.eventlog.")
    scene = scene_of(machine=HOST)
    scene.host.ima_list = SimulatedGuest(files={"/bin/other": b"o"}).ima.binary
    assert scene.refused(scene.layer()).startswith("host.ima.")


def traps(*epochs: object) -> tuple[Finding, ...]:
    ranges = [{"name": "kernel.text", "last-modified-epoch": epoch} for epoch in epochs]
    fact = Finding("kernel.traps", Outcome.PASS, "explained", {"ranges": ranges})  # type: ignore[dict-item]
    return (*FACTS, fact)


def test_the_last_change_is_the_one_that_the_record_names() -> None:
    scene = scene_of(facts=traps(3, 0, 7))
    claims = scene.host.claims(scene.evidence, MACHINE, last_modified=7)
    host = scene.verify(scene.host.sign(claims, scene.challenge.nonce))
    assert host is not None
    assert host.last_modified == 7
    for lied in (0, 6, 8):
        claims = scene.host.claims(scene.evidence, MACHINE, last_modified=lied)
        assert scene.refused(scene.host.sign(claims, scene.challenge.nonce)) == "host.modified"


@pytest.mark.parametrize(
    "facts",
    [FACTS, traps(), traps(-1), traps("7"), (Finding("kernel.traps", Outcome.PASS, "none"),)],
)
def test_a_record_that_names_no_change_gives_none(facts: tuple[Finding, ...]) -> None:
    assert last_modified_of(SimulatedGuest(facts=facts).record()) == 0
    assert last_modified_of(None) == 0
