"""Steady appraisals: what a verifier does for every guest, every few seconds.

Part of ``./dev bench evidence``.  One appraisal is: the parts of evidence in bytes (a P-256 quote
and 10 new IMA entries) parsed; signature, nonce, selection and PCR digest verified; the boot
recognised as the one that was appraised whole (99 events, once); the new entries replayed and
compared with 100,000 reference paths; every judgement and the verdict made.  Each is another
guest's next appraisal: no state is shared but the rulebook.  ``..._from_file_per_s`` is the same
with the evidence file's CMW container parsed as well, and the trust vector made.

Time is the CPU time of the one thread that does it, so that the figure is per core whatever else
the machine does; the raw signature rate of the crypto library is taken between the rounds in the
same way.
"""

from __future__ import annotations

import gc
import time
from dataclasses import replace

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec

from benchmarks.figures import Against, Figure, from_samples
from undercroft.appraise.pipeline import Rulebook
from undercroft.appraise.steady import SteadySession
from undercroft.base import Grade, HashAlgorithm
from undercroft.formats.ear import Tier
from undercroft.formats.eventlog import EventType
from undercroft.formats.evidence import encode_evidence, parse_evidence
from undercroft.policy import (
    BootRules,
    FileRules,
    Policy,
    QuoteRules,
    ReferenceRules,
    Requirement,
    ResultRules,
    SecureKernelRules,
)
from undercroft.reference.model import Provenance, ReferenceSet, ReferenceValue
from undercroft.testing.guest import NOW, Measured, SimulatedGuest, standard_boot

PATHS = 100_000
EVENTS = 99
NEW = 10
GUESTS = 64
ROUNDS = 32
RAW = 200
TARGET = 8_000

_POLICY = Policy(
    "bench",
    QuoteRules((HashAlgorithm.SHA256,)),
    BootRules(tuple(range(10)), Requirement.REQUIRED),
    FileRules(Requirement.REQUIRED),
    SecureKernelRules(()),
    ReferenceRules(tuple(Grade)),
    ResultRules(300, 120),
)


def _boot() -> tuple[Measured, ...]:
    """Return a boot whose log has 99 events, its header among them."""
    standard = standard_boot()
    provenance = Provenance(Grade.BUILT)
    lines = (f"grub_cmd: set line={n}" for n in range(EVENTS - 1 - len(standard)))
    return standard + tuple(
        Measured(8, EventType.EV_IPL, line.encode(), line.encode(), line, provenance)
        for line in lines
    )


def _references(guest: SimulatedGuest) -> ReferenceSet:
    package = Provenance(Grade.PACKAGE, "coreutils", "9.1")
    files = {
        f"/usr/lib/package/file-{n}": (
            ReferenceValue((HashAlgorithm.SHA256.digest(b"%d" % n),), "", package),
        )
        for n in range(PATHS)
    }
    return replace(guest.references, files={**guest.references.files, **files})


def _guests(rules: Rulebook, boot: tuple[Measured, ...]) -> list[tuple[SteadySession, list[bytes]]]:
    """Return sessions that were appraised once, each with the evidence files still to come."""
    made = []
    for number in range(GUESTS):
        guest = SimulatedGuest(name=f"guest-{number}", boot=boot)
        challenge = guest.challenge()
        session = SteadySession(guest.trust, rules)
        session.first(guest.evidence(challenge, record=None), challenge, NOW)
        offset, files = session.ima_offset, []
        for turn in range(ROUNDS):
            for entry in range(NEW):
                path = (number * ROUNDS + turn) * NEW + entry
                guest.ima.measure(f"/usr/lib/package/file-{path}", b"%d" % path)
            guest.attester.advance(1000)
            new = guest.ima.binary[offset:]
            files.append(
                encode_evidence(guest.evidence(challenge, record=None, eventlog=None, ima_list=new))
            )
            offset += len(new)
        made.append((session, files))
    return made


def _raw_rate() -> float:
    """Return how many P-256 signatures the crypto library itself verifies in a second."""
    key = ec.derive_private_key(5, ec.SECP256R1())
    message, algorithm = bytes(145), ec.ECDSA(hashes.SHA256())
    signature, public = key.sign(message, algorithm), key.public_key()
    start = time.thread_time()
    for _ in range(RAW):
        public.verify(signature, message, algorithm)
    return RAW / (time.thread_time() - start)


def figures() -> list[Figure]:
    """Return ``steady_appraisals_per_s`` on one core, and the raw signature rate beside it."""
    boot = _boot()
    rules = Rulebook.of(_references(SimulatedGuest(boot=boot)), _POLICY)
    guests = _guests(rules, boot)
    challenge = SimulatedGuest().challenge()
    gc.collect()
    gc.freeze()  # as a service does once its references are loaded: they never become garbage
    rates: dict[bool, list[float]] = {False: [], True: []}
    raw = []
    for turn in range(ROUNDS):
        from_file = turn % 2 == 1
        parts = [parse_evidence(files[turn]) for _, files in guests]
        start = time.thread_time()
        for (session, files), evidence in zip(guests, parts, strict=True):
            given = parse_evidence(files[turn]) if from_file else evidence
            appraisal = session.next(given, challenge, NOW)
            if appraisal.verdict is not Tier.AFFIRMING:
                raise AssertionError(appraisal.unmet())
            if from_file and not appraisal.trust_vector:
                raise AssertionError("no trust vector")
        rates[from_file].append(GUESTS / (time.thread_time() - start))
        raw.append(_raw_rate())
    of_raw = [steady / beside for steady, beside in zip(rates[False], raw[::2], strict=True)]
    against = Against("target", TARGET)
    return [
        from_samples("steady_appraisals_per_s", "1/s", rates[False], against=against),
        from_samples("steady_of_raw_p256", "of raw", of_raw),
        from_samples("steady_appraisals_from_file_per_s", "1/s", rates[True]),
        from_samples("p256_verify_raw_per_s", "1/s", raw),
    ]


if __name__ == "__main__":
    for figure in figures():
        print(figure)
