"""What the verifier asked for, and whom it trusts to answer: two small JSON files.

They are saved beside the evidence, so that a verdict can be reproduced offline.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

import msgspec

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm, Nonce
from undercroft.formats import strict_json

CHALLENGE_FORMAT = "undercroft.challenge/1"
TRUST_FORMAT = "undercroft.trust/1"
MAX_SIZE = 1 << 20
"""Bytes of the largest file of either kind that we read."""


@dataclass(frozen=True, slots=True)
class Challenge:
    """A fresh nonce, the PCRs that the quote must cover, and when it was issued.

    ``selection`` maps each PCR bank to its PCR indices; the quote must cover exactly these.
    ``issued_at`` is in seconds since the Unix epoch, by the verifier's clock.
    """

    nonce: Nonce
    selection: Mapping[HashAlgorithm, tuple[int, ...]]
    issued_at: int

    def __post_init__(self) -> None:
        selection = {bank: tuple(sorted(pcrs)) for bank, pcrs in self.selection.items()}
        if not selection:
            raise ValueError("a challenge selects at least one PCR bank")
        for bank, pcrs in selection.items():
            if not pcrs or len(set(pcrs)) != len(pcrs):
                raise ValueError(f"the {bank} bank selects no PCR, or one twice")
            if pcrs[0] < 0 or pcrs[-1] >= PCR_COUNT:
                raise ValueError(f"the {bank} bank selects a PCR outside 0..{PCR_COUNT - 1}")
        if self.issued_at < 0:
            raise ValueError("a challenge is not issued before 1970")
        object.__setattr__(self, "selection", MappingProxyType(selection))


class HowTrusted(enum.Enum):
    """Why the verifier believes that this attestation key is in this machine's TPM."""

    MADE_HERE = "made-here"
    """We made the vTPM and its key ourselves, beside the guest."""
    ACTIVATED = "activated"
    """Credential activation proved that the key is in the TPM with the certified EK."""
    PINNED = "pinned"
    """The operator said so."""


@dataclass(frozen=True, slots=True)
class Trust:
    """The one key that may sign this guest's quotes.

    ``ak_public`` is its TPMT_PUBLIC; ``ek_certificate`` the DER certificate of the endorsement
    key behind it, or empty.  ``host_ak_public`` is the TPMT_PUBLIC of the key that may vouch for
    the guest's host, empty if none is known; ``host_counter`` is the last value accepted of that
    host's monotonic counter; ``host_ek_certificate`` the DER certificate of the endorsement key
    that credential activation tied the host's key to, empty if nobody checked.
    """

    guest: str
    ak_public: bytes
    how: HowTrusted
    ek_certificate: bytes = b""
    host_ak_public: bytes = b""
    host_counter: int = 0
    host_ek_certificate: bytes = b""

    def __post_init__(self) -> None:
        if not self.guest or not self.ak_public:
            raise ValueError("trust needs a guest's name and its attestation key")
        if self.host_counter < 0:
            raise ValueError("a counter is not negative")


class _Challenge(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    nonce: str
    selection: dict[str, list[int]]
    issued_at: int


class _Trust(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    format: str
    guest: str
    ak_public: str
    how: HowTrusted
    ek_certificate: str = ""
    host_ak_public: str = ""
    host_counter: int = 0
    host_ek_certificate: str = ""


def _check_format(found: str, wanted: str, name: str) -> None:
    if found != wanted:
        raise FormatError(name, 0, "another format or version", expected=wanted, got=found[:80])


def _bank(name: str) -> HashAlgorithm:
    algorithm = HashAlgorithm.from_name(name)
    if algorithm is None:
        raise ValueError(f"unknown hash algorithm {name[:40]!r}")
    return algorithm


def parse_challenge(data: bytes) -> Challenge:
    """Parse a challenge file.  Raises FormatError."""
    wire = strict_json.parse(data, _Challenge, "challenge", limit=MAX_SIZE)
    _check_format(wire.format, CHALLENGE_FORMAT, "challenge")
    try:
        selection = {_bank(name): tuple(pcrs) for name, pcrs in wire.selection.items()}
        return Challenge(Nonce(strict_json.unhex(wire.nonce)), selection, wire.issued_at)
    except ValueError as error:
        raise FormatError("challenge", 0, str(error)) from error


def encode_challenge(challenge: Challenge) -> bytes:
    """Write ``challenge`` as a challenge file."""
    selection = {bank.label: list(pcrs) for bank, pcrs in challenge.selection.items()}
    return strict_json.encode(
        _Challenge(CHALLENGE_FORMAT, str(challenge.nonce), selection, challenge.issued_at)
    )


def parse_trust(data: bytes) -> Trust:
    """Parse a trust file.  Raises FormatError."""
    wire = strict_json.parse(data, _Trust, "trust", limit=MAX_SIZE)
    _check_format(wire.format, TRUST_FORMAT, "trust")
    try:
        ak, ek = strict_json.unhex(wire.ak_public), strict_json.unhex(wire.ek_certificate)
        host = strict_json.unhex(wire.host_ak_public)
        host_ek = strict_json.unhex(wire.host_ek_certificate)
        return Trust(wire.guest, ak, wire.how, ek, host, wire.host_counter, host_ek)
    except ValueError as error:
        raise FormatError("trust", 0, str(error)) from error


def encode_trust(trust: Trust) -> bytes:
    """Write ``trust`` as a trust file."""
    return strict_json.encode(
        _Trust(
            TRUST_FORMAT,
            trust.guest,
            trust.ak_public.hex(),
            trust.how,
            trust.ek_certificate.hex(),
            trust.host_ak_public.hex(),
            trust.host_counter,
            trust.host_ek_certificate.hex(),
        )
    )
