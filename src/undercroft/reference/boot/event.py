"""One predicted measurement, and what a list of them makes of the PCRs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from undercroft.base import Digest, HashAlgorithm, PcrBank
from undercroft.reference.model import Grade, Provenance, ReferenceSet, ReferenceValue

PREDICTED_BANKS = (
    HashAlgorithm.SHA1,
    HashAlgorithm.SHA256,
    HashAlgorithm.SHA384,
    HashAlgorithm.SHA512,
)
"""The banks that predictions are made for: every one that OVMF and swtpm can have."""

_GRADES = tuple(Grade)
"""Grades from best to worst, as the enumeration lists them."""

_BOOT_AGGREGATE_PCRS = range(10)
"""PCRs 0..9 for every bank but SHA-1 (security/integrity/ima/ima_crypto.c, Linux >= 5.8)."""


@dataclass(frozen=True, slots=True)
class PredictedEvent:
    """A measurement that will be made.

    ``digests`` are what is extended, one per bank; ``event_type`` is the TCG's name of the
    event; ``role`` is that of :class:`ReferenceValue`.  ``data`` is what the log will hold beside
    the digests, as far as it can be known: addresses and device paths may be others.
    """

    pcr: int
    event_type: str
    description: str
    provenance: Provenance
    digests: tuple[Digest, ...]
    role: str = ""
    data: bytes = b""

    def has(self, algorithm: HashAlgorithm) -> bool:
        """Whether a digest is predicted for the bank."""
        return any(digest.algorithm is algorithm for digest in self.digests)

    def digest(self, algorithm: HashAlgorithm) -> bytes:
        """Return the digest extended into the bank; raise KeyError if it is not predicted."""
        return {d.algorithm: d.value for d in self.digests}[algorithm]


def predicted_pcrs(
    events: Sequence[PredictedEvent],
    algorithm: HashAlgorithm,
    unpredicted: Collection[int] = (),
) -> PcrBank:
    """Return PCRs 0..9, 14 and those of ``events``, from zero (locality 0 start-up).

    Those of ``unpredicted`` are left out: something is measured into them that nobody foretells.
    """
    touched = {*range(10), 14, *(event.pcr for event in events)} - set(unpredicted)
    values = {index: bytes(algorithm.size) for index in sorted(touched)}
    for event in events:
        if event.pcr in values:
            values[event.pcr] = algorithm.hash(values[event.pcr], event.digest(algorithm))
    return PcrBank(algorithm, values)


def boot_references(
    name: str, events: Sequence[PredictedEvent], unpredicted: Collection[int] = ()
) -> ReferenceSet:
    """Return ``events`` as reference values: each event for its PCR, and each PCR's final value.

    A PCR's value is as good as the weakest of its events, so it carries that provenance.  Those
    of ``unpredicted`` get none.
    """
    banks = [predicted_pcrs(events, algorithm, unpredicted) for algorithm in PREDICTED_BANKS]
    by_pcr: dict[int, list[PredictedEvent]] = {}
    for event in events:
        by_pcr.setdefault(event.pcr, []).append(event)
    return ReferenceSet(
        name=name,
        events={pcr: tuple(map(_reference, group)) for pcr, group in by_pcr.items()},
        pcrs={
            pcr: (
                ReferenceValue(
                    tuple(Digest(bank.algorithm, bank.values[pcr]) for bank in banks),
                    f"predicted PCR {pcr}",
                    _weakest(by_pcr.get(pcr, [])),
                ),
            )
            for pcr in banks[0].values
        },
    )


def _reference(event: PredictedEvent) -> ReferenceValue:
    text = f"{event.event_type}: {event.description}"
    return ReferenceValue(event.digests, text, event.provenance, event.role)


def _weakest(group: Sequence[PredictedEvent]) -> Provenance:
    if not group:
        return Provenance(Grade.SPECIFICATION, note="nothing on this boot path measures into it")
    return max((event.provenance for event in group), key=lambda p: _GRADES.index(p.grade))


def boot_aggregate(bank: PcrBank) -> bytes:
    """Return IMA's boot_aggregate over ``bank``: H(PCR 0 || ... || PCR 9), SHA-1: PCR 0..7.

    Source: ima_calc_boot_aggregate_tfm() in security/integrity/ima/ima_crypto.c.
    """
    last = 8 if bank.algorithm is HashAlgorithm.SHA1 else len(_BOOT_AGGREGATE_PCRS)
    return bank.algorithm.hash(*(bank.values[index] for index in range(last)))
