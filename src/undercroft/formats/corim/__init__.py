"""CoRIM and CoMID: concise reference integrity manifests (draft-ietf-rats-corim-11), CBOR.

The part of the format that carries reference values: an unsigned CoRIM of CoMID tags with
reference triples.  Anything else (endorsed values, keys, CoSWID and CoTL tags, conditional
triples) is refused rather than dropped: a reader that skips what it does not know may skip what
mattered.  How a CoRIM becomes a reference set is in ``reference.corim``.
"""

from undercroft.formats.corim.decode import parse_corim
from undercroft.formats.corim.encode import encode_corim
from undercroft.formats.corim.model import (
    ClassMap,
    Comid,
    Corim,
    Entity,
    Measurement,
    ReferenceTriple,
    Validity,
)

__all__ = [
    "ClassMap",
    "Comid",
    "Corim",
    "Entity",
    "Measurement",
    "ReferenceTriple",
    "Validity",
    "encode_corim",
    "parse_corim",
]
