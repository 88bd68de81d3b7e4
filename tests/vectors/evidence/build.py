"""Write the evidence cases: one good one, and one for each defect.

    python tests/vectors/evidence/build.py

A case is what a verifier has on its desk: ``evidence.cmw``, ``challenge.json``, ``trust.json``,
``references.json``, ``policy.toml``, and ``expected.json`` with the verdict and the findings
that keep it from being better, or the check that refuses the evidence.  Everything is made by a
simulated guest and is the same bytes every time; a test compares.
"""

from __future__ import annotations

import importlib.resources
import json
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from undercroft.base import Finding, Grade, HashAlgorithm, Outcome, PcrBank
from undercroft.formats.evidence import (
    Challenge,
    Trust,
    encode_challenge,
    encode_evidence,
    encode_record,
    encode_trust,
)
from undercroft.policy import Policy, encode_policy, parse_policy
from undercroft.reference.model import Provenance, ReferenceSet
from undercroft.reference.serialise import encode_reference_set
from undercroft.testing.attester import SimulatedAttester
from undercroft.testing.guest import NOW, SimulatedGuest, standard_boot

HERE = Path(__file__).parent
POLICIES = importlib.resources.files("undercroft.policy") / "policies"
GUEST = SimulatedGuest()
CHALLENGE = GUEST.challenge()
DEFAULT = parse_policy((POLICIES / "default.toml").read_text())
PATCHED = Finding(
    "kernel.text",
    Outcome.FAIL,
    "kernel text was changed in do_sys_openat2",
    {"mismatches": [{"function": "do_sys_openat2", "address": "0xffffffff812f0000"}]},
    "package: linux-image 6.1.192-2",
)


@dataclass(frozen=True, slots=True)
class Case:
    """One case; ``expected`` is ``{"verdict": ..., "unmet": [...]}`` or ``{"refused": check}``."""

    evidence: bytes
    expected: Mapping[str, Any]
    challenge: Challenge = CHALLENGE
    trust: Trust = GUEST.trust
    references: ReferenceSet = GUEST.references
    policy: Policy = DEFAULT

    def files(self) -> dict[str, bytes]:
        """Return the case's files by name."""
        return {
            "evidence.cmw": self.evidence,
            "challenge.json": encode_challenge(self.challenge),
            "trust.json": encode_trust(self.trust),
            "references.json": encode_reference_set(self.references),
            "policy.toml": encode_policy(self.policy).encode(),
            "expected.json": (
                json.dumps({"appraised_at": NOW, **self.expected}, indent=1) + "\n"
            ).encode(),
        }


def refused(check: str) -> dict[str, str]:
    """Return what is expected of evidence that is not authentic or not well formed."""
    return {"refused": check}


def verdict(tier: str, *unmet: str) -> dict[str, Any]:
    """Return what is expected of authentic evidence."""
    return {"verdict": tier, "unmet": sorted(unmet)}


def good() -> Case:
    """Everything is as it should be."""
    return Case(encode_evidence(GUEST.evidence(CHALLENGE)), verdict("affirming"))


def wrong_nonce() -> Case:
    """The quote answers another challenge."""
    other = GUEST.evidence(GUEST.challenge(nonce=bytes(32)))
    return Case(encode_evidence(other), refused("quote.nonce"))


def swapped_record() -> Case:
    """A good record is put in place of the one that the quote binds."""
    bad = SimulatedGuest(facts=(*GUEST.facts, PATCHED)).evidence(CHALLENGE)
    swapped = replace(bad, record=encode_record(GUEST.record()))
    return Case(encode_evidence(swapped), refused("quote.nonce"))


def relabelled_pcrs() -> Case:
    """The signed selection lacks PCR 7; the value of PCR 5 is sent once more under that label."""
    bank = HashAlgorithm.SHA256
    fewer = tuple(pcr for pcr in CHALLENGE.selection[bank] if pcr != 7)
    evidence = GUEST.evidence(replace(CHALLENGE, selection={bank: fewer}))
    (claimed,) = evidence.quote.claimed_pcrs
    values = {**claimed.values, 7: claimed.values[5]}
    item = replace(evidence.quote, claimed_pcrs=(PcrBank(bank, values),))
    return Case(encode_evidence(replace(evidence, quote=item)), refused("quote.selection"))


def other_values() -> Case:
    """The values sent with the quote are not those that were signed."""
    evidence = GUEST.evidence(CHALLENGE)
    (claimed,) = evidence.quote.claimed_pcrs
    changed = PcrBank(claimed.algorithm, {**claimed.values, 4: bytes(32)})
    item = replace(evidence.quote, claimed_pcrs=(changed,))
    return Case(encode_evidence(replace(evidence, quote=item)), refused("quote.pcr-digest"))


def foreign_key() -> Case:
    """Another attestation key signed."""
    stranger = replace(GUEST.trust, ak_public=SimulatedAttester(label="other").public.encode())
    return Case(encode_evidence(GUEST.evidence(CHALLENGE)), refused("evidence.ak"), trust=stranger)


def cut_eventlog() -> Case:
    """The event log ends in the middle of an event."""
    evidence = GUEST.evidence(CHALLENGE, eventlog=GUEST.log[:-7])
    return Case(encode_evidence(evidence), refused("TCG_PCR_EVENT2"))


def empty_ima_list() -> Case:
    """The IMA list is there and has no entry."""
    evidence = GUEST.evidence(CHALLENGE, ima_list=b"")
    return Case(encode_evidence(evidence), refused("ima.boot-aggregate-entry"))


def flipped_byte() -> Case:
    """One byte in the middle of the file is another."""
    data = bytearray(encode_evidence(GUEST.evidence(CHALLENGE)))
    data[len(data) // 2] ^= 1
    return Case(bytes(data), refused("quote.nonce"))


def cut_file() -> Case:
    """The file ends early."""
    return Case(encode_evidence(GUEST.evidence(CHALLENGE))[:-1], refused("evidence"))


def other_kernel() -> Case:
    """Another kernel image was booted."""
    boot = [
        replace(o, measured=b"evil", role="") if o.role == "kernel" else o for o in standard_boot()
    ]
    evidence = SimulatedGuest(boot=boot).evidence(CHALLENGE)
    unmet = ("boot.pcr.4", "secureboot.images")  # db has the hash of the other kernel only
    return Case(encode_evidence(evidence), verdict("contraindicated", *unmet))


def unknown_file() -> Case:
    """A file ran that no reference value speaks of."""
    guest = SimulatedGuest(files={**GUEST.files, "/usr/bin/rootkit": b"rootkit"})
    evidence = encode_evidence(guest.evidence(CHALLENGE))
    return Case(evidence, verdict("contraindicated", "ima.files", "ima.file"))


def patched_kernel() -> Case:
    """The secure kernel found changed kernel text."""
    facts = tuple(PATCHED if fact.id == PATCHED.id else fact for fact in GUEST.facts)
    evidence = encode_evidence(SimulatedGuest(facts=facts).evidence(CHALLENGE))
    return Case(evidence, verdict("contraindicated", "kernel.text"))


def missing_fact() -> Case:
    """The secure kernel says nothing about kernel text."""
    facts = tuple(fact for fact in GUEST.facts if fact.id != "kernel.text")
    evidence = encode_evidence(SimulatedGuest(facts=facts).evidence(CHALLENGE))
    return Case(evidence, verdict("none", "kernel.text"))


def no_ima_list() -> Case:
    """There is no IMA list, and the policy requires one."""
    evidence = encode_evidence(GUEST.evidence(CHALLENGE, ima_list=None))
    return Case(evidence, verdict("none", "ima.list"))


def stale() -> Case:
    """The evidence was made long before it is appraised."""
    old = GUEST.challenge(issued_at=NOW - 3600)
    evidence = encode_evidence(GUEST.evidence(old))
    return Case(evidence, verdict("none", "evidence.time"), challenge=old)


def observed_references() -> Case:
    """What the boot is compared with was only seen once, on the machine itself."""
    seen = Provenance(Grade.OBSERVED, note="first boot")
    references = GUEST.references
    events = {4: tuple(replace(value, provenance=seen) for value in references.events[4])}
    learned = replace(references, events={**references.events, **events})
    evidence = encode_evidence(GUEST.evidence(CHALLENGE))
    return Case(evidence, verdict("warning", "boot.pcr.4"), references=learned)


def secure_boot_off() -> Case:
    """Secure Boot was off, and the policy requires it."""
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    names = ("enabled", "mode", "keys", "authorities", "images", "drivers")
    return Case(
        encode_evidence(guest.evidence(CHALLENGE)),
        verdict("contraindicated", *(f"secureboot.{name}" for name in names)),
        references=guest.references,
    )


CASES: Mapping[str, Callable[[], Case]] = {
    make.__name__.replace("_", "-"): make
    for make in (
        good,
        wrong_nonce,
        swapped_record,
        relabelled_pcrs,
        other_values,
        foreign_key,
        cut_eventlog,
        empty_ima_list,
        flipped_byte,
        cut_file,
        other_kernel,
        unknown_file,
        patched_kernel,
        missing_fact,
        no_ima_list,
        stale,
        observed_references,
        secure_boot_off,
    )
}


def main() -> int:
    """Write every case."""
    for name, make in CASES.items():
        folder = HERE / name
        folder.mkdir(exist_ok=True)
        for file, data in make().files().items():
            (folder / file).write_bytes(data)
    return 0


if __name__ == "__main__":
    sys.exit(main())
