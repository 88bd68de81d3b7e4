"""How much of the raw signature rate is left when a whole quote is verified.

``quote_verify_ratio``
    quotes verified per second (from bytes: TPMS_ATTEST and TPMT_SIGNATURE parsed, every check
    made, against a last accepted state) over the rate at which the crypto library alone
    verifies the same ECDSA P-256 signatures.  Both are timed in turns and in CPU time of the one
    thread that does it, so that whatever else the machine does hits both alike.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from benchmarks.figures import Against, Figure, from_samples
from undercroft.base import HashAlgorithm
from undercroft.formats.tpm import EccSignature, PcrSelectionList, parse_quote, parse_signature
from undercroft.testing import AkKind, SimulatedAttester, SimulatedQuote
from undercroft.verify.quote import verify_quote

TARGET = 0.75
PCRS = range(11)
"""The boot PCRs and IMA's."""
ROUNDS = 101
QUOTES = 64
"""Different quotes, each verified once a round: nothing is won by seeing one again."""


def _nonce(number: int) -> bytes:
    return number.to_bytes(32, "big")


def _ours(tpm: SimulatedAttester, quotes: Sequence[SimulatedQuote]) -> Callable[[], None]:
    ak = tpm.ak
    selection = PcrSelectionList.of({HashAlgorithm.SHA256: PCRS})
    first = quotes[0]
    last = verify_quote(first.unverified, ak, _nonce(1), selection).accepted_state
    nonces = [_nonce(number) for number in range(1, len(quotes) + 1)]

    def run() -> None:
        for quote, nonce in zip(quotes, nonces, strict=True):
            unverified = parse_quote(quote.attest, quote.signature, quote.claimed_pcrs)
            verify_quote(unverified, ak, nonce, selection, last)

    return run


def _raw(tpm: SimulatedAttester, quotes: Sequence[SimulatedQuote]) -> Callable[[], None]:
    key = tpm.ak.key
    assert isinstance(key, ec.EllipticCurvePublicKey)
    algorithm = ec.ECDSA(hashes.SHA256())
    signed = []
    for quote in quotes:
        signature = parse_signature(quote.signature)
        assert isinstance(signature, EccSignature)
        r, s = int.from_bytes(signature.r, "big"), int.from_bytes(signature.s, "big")
        signed.append((encode_dss_signature(r, s), quote.attest))

    def run() -> None:
        for signature, message in signed:
            key.verify(signature, message, algorithm)

    return run


def _seconds(action: Callable[[], None]) -> float:
    start = time.thread_time()
    action()
    return time.thread_time() - start


def figures() -> list[Figure]:
    """Return ``quote_verify_ratio`` and the two rates that it is the ratio of."""
    tpm = SimulatedAttester(AkKind.ECDSA_P256)
    for index in PCRS:
        tpm.measure(index, b"measured")
    quotes = []
    for number in range(1, QUOTES + 1):
        tpm.advance(10)
        quotes.append(tpm.quote(_nonce(number), {HashAlgorithm.SHA256: PCRS}))
    ours, raw = _ours(tpm, quotes), _raw(tpm, quotes)
    ours(), raw()
    # Turn and turn about, and the ratio of each pair of neighbours.
    pairs = [(_seconds(raw), _seconds(ours)) for _ in range(ROUNDS)]
    return [
        from_samples(
            "quote_verify_ratio",
            "of raw",
            [raw_s / ours_s for raw_s, ours_s in pairs],
            against=Against("at least", TARGET),
        ),
        from_samples("quote_verify_per_s", "1/s", [QUOTES / ours_s for _, ours_s in pairs]),
        from_samples("p256_verify_per_s", "1/s", [QUOTES / raw_s for raw_s, _ in pairs]),
    ]
