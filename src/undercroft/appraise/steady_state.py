"""What one appraisal of a running guest leaves for the next: a few kilobytes.

The state is the verifier's own, and only as good as the place that it is kept in: bytes from
anywhere else must not be taken for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from undercroft.appraise.ima_carried import ImaCarried, parse_carried
from undercroft.appraise.model import Judgement
from undercroft.base import Finding, FormatError, HashAlgorithm, Outcome, PcrBank
from undercroft.formats import cbor
from undercroft.formats.ear import Tier, TrustClaim
from undercroft.verify.quote import AcceptedState

FORMAT = "steady state"
VERSION = 1


class SteadyState(msgspec.Struct, frozen=True):
    """Bound to one boot (``accepted``, ``boot_pcrs``) and one rulebook (``rules_id``).

    ``boot`` are the judgements that hold until the machine boots again; ``eventlog_sha256`` is
    empty if there was no log; ``ima`` is None if there was no list.
    """

    rules_id: bytes
    accepted: AcceptedState
    boot_pcrs: tuple[PcrBank, ...]
    eventlog_sha256: bytes
    boot: tuple[Judgement, ...]
    ima: ImaCarried | None

    def encode(self) -> bytes:
        """Return the bytes that :func:`parse_steady_state` takes."""
        accepted = self.accepted
        return cbor.encode(
            {
                "version": VERSION,
                "rules": self.rules_id,
                "accepted": [
                    accepted.ak_name,
                    accepted.clock,
                    accepted.reset_count,
                    accepted.restart_count,
                    accepted.firmware_version,
                ],
                "pcrs": [[bank.algorithm.label, dict(bank.values)] for bank in self.boot_pcrs],
                "eventlog": self.eventlog_sha256,
                "boot": [judgement.as_json() for judgement in self.boot],
                "ima": self.ima.encode() if self.ima else None,
            }
        )


class _Judgement(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    id: str
    outcome: Outcome
    summary: str
    details: dict[str, Any]
    source: str
    tier: str | None
    claim: TrustClaim | None


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    version: int
    rules: bytes
    accepted: tuple[bytes, int, int, int, int]
    pcrs: list[tuple[str, dict[int, bytes]]]
    eventlog: bytes
    boot: list[_Judgement]
    ima: bytes | None


_TIERS: Mapping[str, Tier] = {tier.label: tier for tier in Tier}


def _judgement(wire: _Judgement) -> Judgement:
    finding = Finding(wire.id, wire.outcome, wire.summary, wire.details, wire.source)
    return Judgement(finding, None if wire.tier is None else _TIERS[wire.tier], wire.claim)


def _bank(name: str, values: dict[int, bytes]) -> PcrBank:
    algorithm = HashAlgorithm.from_name(name)
    if algorithm is None:
        raise ValueError(f"unknown hash algorithm {name[:40]!r}")
    return PcrBank(algorithm, values)


def parse_steady_state(data: bytes) -> SteadyState:
    """Parse what :meth:`SteadyState.encode` wrote.  Raises FormatError."""
    wire = cbor.convert(cbor.decode(data, FORMAT), _Wire, FORMAT)
    try:
        if wire.version != VERSION:
            raise ValueError(f"version {wire.version} is not {VERSION}")
        return SteadyState(
            wire.rules,
            AcceptedState(*wire.accepted),
            tuple(_bank(name, values) for name, values in wire.pcrs),
            wire.eventlog,
            tuple(map(_judgement, wire.boot)),
            None if wire.ima is None else parse_carried(wire.ima),
        )
    except (ValueError, KeyError) as error:
        raise FormatError(FORMAT, 0, str(error)) from error
