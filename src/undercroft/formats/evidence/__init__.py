"""Evidence as it is saved and sent: one CMW collection that holds everything, and its parts.

=================== ======================================================================
module              what
=================== ======================================================================
``cmw``             RATS Conceptual Message Wrapper, CBOR form (draft-ietf-rats-msg-wrap-23)
``collection``      the evidence collection: quote, event log, IMA list, secure-kernel record
``record``          what the secure kernel reports, as deterministic CBOR
``binding``         how one quote binds nonce and record
``eat``             the collection in a signed EAT (RFC 9711, CBOR/COSE)
``challenge``       what the verifier asked for, and what it trusts, as small JSON files
=================== ======================================================================

Nothing here is verified: see ``verify`` and ``appraise.pipeline``.
"""

from undercroft.formats.evidence.binding import qualifying_data
from undercroft.formats.evidence.challenge import (
    Challenge,
    HowTrusted,
    Trust,
    encode_challenge,
    encode_trust,
    parse_challenge,
    parse_trust,
)
from undercroft.formats.evidence.collection import (
    Evidence,
    QuoteItem,
    encode_evidence,
    parse_evidence,
)
from undercroft.formats.evidence.record import (
    SecureKernelRecord,
    encode_record,
    parse_record,
)

__all__ = [
    "Challenge",
    "Evidence",
    "HowTrusted",
    "QuoteItem",
    "SecureKernelRecord",
    "Trust",
    "encode_challenge",
    "encode_evidence",
    "encode_record",
    "encode_trust",
    "parse_challenge",
    "parse_evidence",
    "parse_record",
    "parse_trust",
    "qualifying_data",
]
