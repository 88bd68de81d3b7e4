"""Evidence in a signed EAT (RFC 9711): a CWT, that is COSE_Sign1 (RFC 9052), with the CMW inside.

``61(18([protected, {}, payload, signature]))``.  The protected header holds the algorithm
(ES256 or ES384, RFC 9053) and the key id; the payload is the claims set::

    {6: iat, 10: eat_nonce, 265: eat_profile, 299: cmw}

The quote inside is bound to its own nonce already.  The envelope says who collected the
evidence, for a collector that has a key of its own.  ``verify.eat`` checks it.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass

from undercroft.base import FormatError, Nonce
from undercroft.formats import cbor
from undercroft.formats.cbor import CborValue, Tagged
from undercroft.formats.evidence import cmw
from undercroft.formats.evidence.collection import Evidence, from_value, to_cmw

FORMAT = "EAT"
PROFILE = "tag:undercroft.example,2026:eat-evidence/1"
"""eat_profile (RFC 9711 section 6): ES256 or ES384, deterministic CBOR, these four claims."""

MAX_TIME = 1 << 53
"""Times stay below 2^53 s, so that every JSON and CBOR reader takes them as integers."""

_CWT_TAG, _SIGN1_TAG = 61, 18
_TAGS = frozenset({_CWT_TAG, _SIGN1_TAG})
_ALG, _KID = 1, 4
_IAT, _NONCE, _PROFILE, _CMW = 6, 10, 265, 299


class CoseAlgorithm(enum.Enum):
    """COSE algorithm numbers that the profile allows (RFC 9053 section 2.1)."""

    ES256 = -7
    ES384 = -35

    @property
    def signature_size(self) -> int:
        """Bytes of r || s, both in the length of the curve's order."""
        return 64 if self is CoseAlgorithm.ES256 else 96


_ALGORITHMS = {algorithm.value: algorithm for algorithm in CoseAlgorithm}


@dataclass(frozen=True, slots=True)
class EatClaims:
    """What the envelope says: the nonce it answers, when it was made (Unix s), the evidence."""

    nonce: Nonce
    issued_at: int
    evidence: Evidence

    def __post_init__(self) -> None:
        if not 0 <= self.issued_at < MAX_TIME:
            raise ValueError("iat is outside 0..2^53-1")


@dataclass(frozen=True, slots=True)
class UnverifiedEat:
    """A parsed envelope.  ``signed_bytes`` is the Sig_structure that ``signature`` is over."""

    algorithm: CoseAlgorithm
    key_id: bytes
    claims: EatClaims
    signed_bytes: bytes
    signature: bytes


def _fail(reason: str, *, expected: object = "", got: object = "") -> FormatError:
    return FormatError(FORMAT, 0, reason, expected=expected, got=got)


def _protected(algorithm: CoseAlgorithm, key_id: bytes) -> bytes:
    return cbor.encode({_ALG: algorithm.value, _KID: key_id})


def _signed_bytes(protected: bytes, payload: bytes) -> bytes:
    """Sig_structure of COSE_Sign1 with no external data (RFC 9052 section 4.4)."""
    return cbor.encode(["Signature1", protected, b"", payload])


def encode_eat(
    claims: EatClaims,
    algorithm: CoseAlgorithm,
    key_id: bytes,
    sign: Callable[[bytes], bytes],
) -> bytes:
    """Encode an EAT.  ``sign`` takes the bytes to sign and returns r || s for ``algorithm``."""
    protected = _protected(algorithm, key_id)
    payload = cbor.encode(
        {
            _IAT: claims.issued_at,
            _NONCE: claims.nonce.value,
            _PROFILE: PROFILE,
            _CMW: cmw.to_value(to_cmw(claims.evidence)),
        }
    )
    signature = sign(_signed_bytes(protected, payload))
    envelope = [protected, {}, payload, signature]
    return cbor.encode(Tagged(_CWT_TAG, Tagged(_SIGN1_TAG, envelope)))


def _envelope(data: bytes) -> list[CborValue]:
    """Return protected, unprotected, payload and signature, checked for their types."""
    match cbor.decode(data, FORMAT, tags=_TAGS):
        case Tagged(
            tag=61,
            value=Tagged(tag=18, value=[bytes(), dict() as unprotected, bytes(), bytes()] as parts),
        ):
            if unprotected:
                raise _fail("unprotected header parameters, which nothing signs")
            return list(parts)
    raise _fail("not a CWT of COSE_Sign1", expected="61(18([bstr, {}, bstr, bstr]))")


def _header(protected: bytes) -> tuple[CoseAlgorithm, bytes]:
    match cbor.decode(protected, "EAT protected header"):
        case {1: int() as alg, 4: bytes() as key_id, **more} if not more and alg in _ALGORITHMS:
            return _ALGORITHMS[alg], key_id
    raise _fail("the protected header is not ES256 or ES384 with a key id")


def _claims(payload: bytes) -> EatClaims:
    match cbor.decode(payload, "EAT claims"):
        case {
            6: int() as issued_at,
            10: bytes() as nonce,
            265: str() as profile,
            299: inner,
            **more,
        }:
            pass
        case _:
            raise _fail("iat, eat_nonce, eat_profile and cmw are not all there")
    if more or isinstance(issued_at, bool):
        raise _fail("claims that the profile does not have", got=sorted(map(str, more)))
    if profile != PROFILE:
        raise _fail("another EAT profile", expected=PROFILE, got=profile[:100])
    try:
        return EatClaims(Nonce(nonce), issued_at, from_value(inner))
    except ValueError as error:
        raise _fail(str(error)) from error


def parse_eat(data: bytes) -> UnverifiedEat:
    """Parse an EAT.  Raises FormatError.  Nothing is verified."""
    protected, _, payload, signature = _envelope(data)
    algorithm, key_id = _header(protected)
    if len(signature) != algorithm.signature_size:
        raise _fail(
            "the signature has another length",
            expected=algorithm.signature_size,
            got=len(signature),
        )
    return UnverifiedEat(
        algorithm, key_id, _claims(payload), _signed_bytes(protected, payload), signature
    )
