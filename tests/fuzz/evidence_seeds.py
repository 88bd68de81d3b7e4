"""Write the seeds of the evidence targets' corpus, from a simulated guest and shipped files.

    python tests/fuzz/evidence_seeds.py

Inputs that fuzzing found stay beside the seeds; this script only adds and renews its own.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Iterator
from pathlib import Path

from undercroft.appraise.ear import ear_claims
from undercroft.appraise.pipeline import Rulebook, appraise, verify_evidence
from undercroft.appraise.steady import SteadySession
from undercroft.base import HashAlgorithm
from undercroft.formats import cbor
from undercroft.formats.cbor import Tagged
from undercroft.formats.corim import encode_corim
from undercroft.formats.corim.model import (
    ClassMap,
    Comid,
    Corim,
    Entity,
    Measurement,
    ReferenceTriple,
    Validity,
)
from undercroft.formats.descriptor import VmDescriptor, encode_descriptor
from undercroft.formats.ear import EAR_03, VERAISON_2023, VerifierId
from undercroft.formats.evidence import (
    encode_challenge,
    encode_evidence,
    encode_record,
    encode_trust,
)
from undercroft.formats.evidence.cmw import CmwCollection, CmwRecord, encode_cmw
from undercroft.formats.evidence.collection import encode_quote_item
from undercroft.formats.evidence.eat import CoseAlgorithm, EatClaims, encode_eat
from undercroft.formats.evidence.hostlayer import encode_host_layer
from undercroft.policy import parse_policy
from undercroft.reference.corim import encode_reference_corim
from undercroft.reference.serialise import encode_reference_set
from undercroft.testing.guest import NOW, SimulatedGuest
from undercroft.testing.host import SimulatedHost

HERE = Path(__file__).parent
POLICIES = importlib.resources.files("undercroft.policy") / "policies"


def guest_seeds() -> Iterator[tuple[str, str, bytes]]:
    """What a guest and its verifier exchange: target, name, bytes."""
    guest = SimulatedGuest()
    challenge = guest.challenge()
    evidence = guest.evidence(challenge)
    policy = parse_policy((POLICIES / "default.toml").read_text())
    yield "evidence", "whole", encode_evidence(evidence)
    yield "evidence", "quote-only", encode_evidence(guest.evidence(challenge, eventlog=None))
    yield "quote-item", "sha256", encode_quote_item(evidence.quote)
    yield "record", "facts", encode_record(guest.record())
    claims = EatClaims(challenge.nonce, NOW, evidence)
    yield "eat", "es256", encode_eat(claims, CoseAlgorithm.ES256, b"key", lambda _: bytes(64))
    yield "eat", "es384", encode_eat(claims, CoseAlgorithm.ES384, b"", lambda _: bytes(96))
    host = SimulatedHost()
    layer = host.sign(host.claims(evidence), challenge.nonce)
    yield "host-layer", "stand-in", encode_host_layer(layer)
    yield "challenge", "sha256", encode_challenge(challenge)
    yield "trust", "made-here", encode_trust(guest.trust)
    yield "reference-json", "guest", encode_reference_set(guest.references)
    yield "reference-corim", "guest", encode_reference_corim(guest.references)
    yield "corim", "guest", encode_reference_corim(guest.references)
    session = SteadySession(guest.trust, Rulebook.of(guest.references, policy))
    session.first(evidence, challenge, NOW)
    assert session.state is not None
    yield "steady-state", "first", session.state.encode()
    verified = verify_evidence(evidence, guest.trust, challenge)
    appraisal = appraise(verified, guest.references, policy, NOW)
    for name, profile in (("ear-03", EAR_03), ("veraison-2023", VERAISON_2023)):
        result = ear_claims(appraisal, VerifierId("undercroft", "0"), profile=profile)
        yield "ear", name, json.dumps(result).encode()


def other_seeds() -> Iterator[tuple[str, str, bytes]]:
    """What no guest of ours says: target, name, bytes."""
    for entry in POLICIES.iterdir():
        yield "policy", entry.name, entry.read_bytes()
    machine = VmDescriptor(
        name="web",
        hypervisor=b"q" * 32,
        machine="q35,smm=off",
        accelerator="kvm",
        cpu="host",
        vcpus=2,
        memory=512 << 20,
        firmware=b"f" * 32,
        variables=b"v" * 32,
        kernel=b"k" * 32,
        initrd=b"i" * 32,
        command_line="quiet",
        devices={"pci/00:00.0": "8086:29c0", "chardev/serial": "chardev-socket"},
        network=("52:54:00:12:34:56",),
        vtpm=b"e" * 32,
    )
    yield "descriptor", "machine", encode_descriptor(machine)
    value = [0, 23, 24, -1, 1.5, 0.1, "text", b"bytes", None, True, {1: [], "a": {}}]
    yield "cbor", "everything", cbor.encode(Tagged(501, [*value, 1 << 40, Tagged(506, b"")]))
    inner = CmwCollection("", {0: CmwRecord(30001, b"x")})
    yield (
        "cmw",
        "nested",
        encode_cmw(CmwCollection("1.2.3", {"i": inner, "r": CmwRecord("a/b", b"")})),
    )
    digest = HashAlgorithm.SHA256.digest(b"")
    measurements = (
        Measurement("/bin/sh", (digest,), b"raw", "shell"),
        Measurement(integrity_registers={7: (digest,), "ir": (digest,)}),
    )
    environment = ClassMap(Tagged(37, bytes(16)), "ACME Inc.", "RoadRunner", 1, 0)
    triple = ReferenceTriple(environment, measurements)
    entity = Entity("ACME Inc.", (0,), "https://acme.example")
    comid = Comid(bytes(16), (triple,), 3, "en", (entity,))
    yield (
        "corim",
        "foreign",
        encode_corim(Corim("id", (comid,), None, Validity(200, 100), (entity,))),
    )
    plain = ReferenceTriple(environment, (Measurement("/bin/sh", (digest,)),))
    yield "reference-corim", "foreign", encode_corim(Corim("id", (Comid("tag", (plain,)),)))


def main() -> None:
    """Write every seed."""
    for target, name, data in (*guest_seeds(), *other_seeds()):
        folder = HERE / "corpus" / "evidence" / target
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"seed-{name}.bin").write_bytes(data)


if __name__ == "__main__":
    main()
