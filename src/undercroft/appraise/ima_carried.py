"""What one appraisal of a growing IMA list leaves for the next.

A list is never forgotten by the guest until it boots again, so neither is what was wrong in it:
the next appraisal looks at new entries only and adds what was found before.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from undercroft.appraise.model import Judgement
from undercroft.base import Finding, FormatError, Outcome
from undercroft.formats.ear import Tier, TrustClaim
from undercroft.verify.ima_state import ImaState, WireState, state_of

FORMAT = "IMA appraisal state"
KEPT = 16
"""How many deviations are kept word for word; the others are kept as numbers."""


class ImaTally(msgspec.Struct, frozen=True):
    """How often what was seen: numbers of entries by what became of them, for one boot.

    ``grades`` counts the entries that a reference of that grade explains.  ``failed`` and
    ``undetermined`` count the deviations by outcome; ``worst`` is their worst tier, None if
    there was none.
    """

    kinds: Mapping[str, int] = msgspec.field(default_factory=dict)
    grades: Mapping[str, int] = msgspec.field(default_factory=dict)
    failed: int = 0
    undetermined: int = 0
    worst: Tier | None = None


class ImaCarried(msgspec.Struct, frozen=True):
    """The replay's state, who judged, the tally and the first deviations.

    As good as the place it is kept in: bytes from anywhere else must not be taken for it.
    """

    state: ImaState
    judge_id: bytes
    tally: ImaTally
    deviations: tuple[Judgement, ...] = ()

    def encode(self) -> bytes:
        """Return the bytes that :func:`parse_carried` takes."""
        tally = self.tally
        return _ENCODER.encode(
            _Wire(
                self.state.to_wire(),
                self.judge_id,
                dict(tally.kinds),
                dict(tally.grades),
                tally.failed,
                tally.undetermined,
                tally.worst.label if tally.worst else None,
                [_to_wire(judgement) for judgement in self.deviations],
            )
        )


class _WireDeviation(msgspec.Struct, array_like=True, forbid_unknown_fields=True):
    id: str
    outcome: str
    summary: str
    details: dict[str, Any]
    source: str
    tier: str | None
    claim: str | None


class _Wire(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="undercroft.ima/1"):
    state: WireState
    judge_id: bytes
    kinds: dict[str, int]
    grades: dict[str, int]
    failed: int
    undetermined: int
    worst: str | None
    deviations: list[_WireDeviation]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(_Wire)
_TIERS = {tier.label: tier for tier in Tier}


def _to_wire(judgement: Judgement) -> _WireDeviation:
    finding = judgement.finding
    return _WireDeviation(
        finding.id,
        finding.outcome.value,
        finding.summary,
        dict(finding.details),
        finding.source,
        judgement.tier.label if judgement.tier else None,
        judgement.claim.value if judgement.claim else None,
    )


def _from_wire(wire: _WireDeviation) -> Judgement:
    finding = Finding(wire.id, Outcome(wire.outcome), wire.summary, wire.details, wire.source)
    claim = TrustClaim(wire.claim) if wire.claim is not None else None
    return Judgement(finding, _TIERS[wire.tier] if wire.tier is not None else None, claim)


def parse_carried(data: bytes) -> ImaCarried:
    """Parse what :meth:`ImaCarried.encode` wrote.  Raises FormatError."""
    try:
        wire = _DECODER.decode(data)
        if _ENCODER.encode(wire) != data:
            raise ValueError("not written in the one way that it is written")
        carried = ImaCarried(
            state_of(wire.state),
            wire.judge_id,
            ImaTally(
                wire.kinds,
                wire.grades,
                wire.failed,
                wire.undetermined,
                _TIERS[wire.worst] if wire.worst is not None else None,
            ),
            tuple(map(_from_wire, wire.deviations)),
        )
    except (msgspec.MsgspecError, ValueError, KeyError) as error:
        raise FormatError(FORMAT, 0, f"not a carried appraisal: {error}") from None
    return carried
