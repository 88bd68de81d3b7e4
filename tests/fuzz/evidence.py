"""Fuzz targets for evidence, results, policies and reference sets.

Binary formats: only FormatError escapes, and what parses encodes to the input.  Text formats
have more than one spelling: there, what parses survives being written and read again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.appraise.steady_state import parse_steady_state
from undercroft.base import FormatError, Grade, VerificationError
from undercroft.formats import cbor
from undercroft.formats.corim import encode_corim, parse_corim
from undercroft.formats.descriptor import encode_descriptor, parse_descriptor
from undercroft.formats.ear.claims import PROFILES, from_claims, to_claims
from undercroft.formats.evidence import (
    encode_challenge,
    encode_evidence,
    encode_record,
    encode_trust,
    parse_challenge,
    parse_evidence,
    parse_record,
    parse_trust,
)
from undercroft.formats.evidence.cmw import encode_cmw, parse_cmw
from undercroft.formats.evidence.collection import encode_quote_item, parse_quote_item
from undercroft.formats.evidence.eat import encode_eat, parse_eat
from undercroft.formats.evidence.hostlayer import encode_host_layer, parse_host_layer
from undercroft.formats.strict_json import parse as parse_json
from undercroft.policy import encode_policy, parse_policy
from undercroft.reference.corim import encode_reference_corim, parse_reference_corim
from undercroft.reference.model import Provenance
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.testing.fuzzing import Suite, Target, exact, fuzz_by_hand, survives
from undercroft.verify.ear import verify_ear

TAGS = frozenset({18, 61, 501, 506})
KEY = ec.derive_private_key(11, ec.SECP256R1())
NOW = 1_700_000_000


def _policy(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    survives(lambda raw: parse_policy(raw.decode()), lambda policy: encode_policy(policy).encode())(
        text.encode()
    )


def _ear(data: bytes) -> None:
    """Any bytes as claims, and as a token."""
    try:
        claims = parse_json(data, dict, "EAR", limit=1 << 20)
        result = from_claims(claims)
    except FormatError:
        pass
    else:
        if from_claims(to_claims(result)) != result or result.profile.uri not in PROFILES:
            raise AssertionError("from_claims(to_claims(x)) is not x")
    try:
        verify_ear(data.decode("latin-1"), KEY.public_key(), NOW)
    except (FormatError, VerificationError):
        return


_FOREIGN = Provenance(Grade.OBSERVED, origin="fuzz")

TARGETS: dict[str, Target] = {
    "cbor": exact(lambda data: cbor.decode(data, "fuzz", tags=TAGS), cbor.encode),
    "cmw": exact(parse_cmw, encode_cmw),
    "evidence": exact(parse_evidence, encode_evidence),
    "quote-item": exact(parse_quote_item, encode_quote_item),
    "record": exact(parse_record, encode_record),
    "descriptor": exact(parse_descriptor, encode_descriptor),
    "host-layer": exact(parse_host_layer, encode_host_layer),
    "eat": exact(
        parse_eat,
        lambda eat: encode_eat(eat.claims, eat.algorithm, eat.key_id, lambda _: eat.signature),
    ),
    "corim": exact(parse_corim, encode_corim),
    "steady-state": exact(parse_steady_state, lambda state: state.encode()),
    "reference-corim": survives(
        lambda data: parse_reference_corim(data, _FOREIGN), encode_reference_corim
    ),
    "reference-json": survives(parse_reference_set, encode_reference_set),
    "challenge": survives(parse_challenge, encode_challenge),
    "trust": survives(parse_trust, encode_trust),
    "policy": _policy,
    "ear": _ear,
}
SUITE = Suite(Path(__file__), TARGETS)

if __name__ == "__main__":
    sys.exit(fuzz_by_hand(__file__, TARGETS))
