"""Fuzz targets for evidence, results, policies and reference sets.

Binary formats: only FormatError escapes, and what parses encodes to the input.  Text formats
have more than one spelling: there, what parses survives being written and read again.
``test_evidence.py`` runs the targets over the committed corpus and near it.  By hand, with
atheris (``pip install -e '.[fuzz]'``):

    python tests/fuzz/evidence.py TARGET [libFuzzer options, such as -max_total_time=60]
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.appraise.steady_state import parse_steady_state
from undercroft.base import FormatError, Grade, VerificationError
from undercroft.formats import cbor
from undercroft.formats.corim import encode_corim, parse_corim
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
from undercroft.formats.strict_json import parse as parse_json
from undercroft.policy import encode_policy, parse_policy
from undercroft.reference.corim import encode_reference_corim, parse_reference_corim
from undercroft.reference.model import Provenance
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.verify.ear import verify_ear

HERE = Path(__file__).parent
CORPUS = HERE / "corpus" / "evidence"
TAGS = frozenset({18, 61, 501, 506})
KEY = ec.derive_private_key(11, ec.SECP256R1())
NOW = 1_700_000_000

T = TypeVar("T")


def _exact(parse: Callable[[bytes], T], encode: Callable[[T], bytes]) -> Callable[[bytes], None]:
    """What parses encodes to the input."""

    def target(data: bytes) -> None:
        try:
            value = parse(data)
        except FormatError as error:
            if not 0 <= error.offset <= len(data):
                raise AssertionError(f"offset {error.offset} of {len(data)}") from error
            return
        if encode(value) != data:
            raise AssertionError("encode(parse(x)) is not x")

    return target


def _survives(parse: Callable[[bytes], T], encode: Callable[[T], bytes]) -> Callable[[bytes], None]:
    """What parses is the same value after it was written and read again."""

    def target(data: bytes) -> None:
        try:
            value = parse(data)
        except FormatError:
            return
        if parse(encode(value)) != value:
            raise AssertionError("parse(encode(x)) is not x")

    return target


def _policy(data: bytes) -> None:
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    _survives(
        lambda raw: parse_policy(raw.decode()), lambda policy: encode_policy(policy).encode()
    )(text.encode())


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

TARGETS: dict[str, Callable[[bytes], None]] = {
    "cbor": _exact(lambda data: cbor.decode(data, "fuzz", tags=TAGS), cbor.encode),
    "cmw": _exact(parse_cmw, encode_cmw),
    "evidence": _exact(parse_evidence, encode_evidence),
    "quote-item": _exact(parse_quote_item, encode_quote_item),
    "record": _exact(parse_record, encode_record),
    "eat": _exact(
        parse_eat,
        lambda eat: encode_eat(eat.claims, eat.algorithm, eat.key_id, lambda _: eat.signature),
    ),
    "corim": _exact(parse_corim, encode_corim),
    "steady-state": _exact(parse_steady_state, lambda state: state.encode()),
    "reference-corim": _survives(
        lambda data: parse_reference_corim(data, _FOREIGN), encode_reference_corim
    ),
    "reference-json": _survives(parse_reference_set, encode_reference_set),
    "challenge": _survives(parse_challenge, encode_challenge),
    "trust": _survives(parse_trust, encode_trust),
    "policy": _policy,
    "ear": _ear,
}


def main(arguments: list[str]) -> int:
    """Fuzz the target that is named first; the rest goes to libFuzzer."""
    if not arguments or arguments[0] not in TARGETS:
        sys.stderr.write("targets: " + " ".join(TARGETS) + "\n")
        return 2
    import atheris

    name, *options = arguments
    found = HERE.parents[1] / "build" / "fuzz" / "evidence" / name
    found.mkdir(parents=True, exist_ok=True)
    # Import everything again, instrumented: instrumenting all of Python would take a minute.
    for module in [module for module in sys.modules if module.startswith("undercroft")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["undercroft"]):
        target = runpy.run_path(__file__)["TARGETS"][name]
    artifacts = f"-artifact_prefix={found}/fault-"
    atheris.Setup([sys.argv[0], artifacts, *options, str(found), str(CORPUS / name)], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
