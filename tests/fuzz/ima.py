"""Fuzz targets for IMA lists; the vectors are their corpus.

Only FormatError escapes a parser, and what parses encodes to the input; what parses is also
shown, replayed and judged.
"""

from __future__ import annotations

import sys
from pathlib import Path

from undercroft.appraise.ima import appraise_ima
from undercroft.appraise.ima_carried import parse_carried
from undercroft.appraise.ima_rules import ImaJudge, ImaRules
from undercroft.base import FormatError, Grade, HashAlgorithm, PcrBank, VerificationError
from undercroft.cli.ima import entry_json
from undercroft.formats.ima import (
    ImaList,
    decode_buffer,
    detect,
    encode_ascii,
    encode_binary,
    parse_ascii,
    parse_binary,
    parse_inode,
    parse_signature,
)
from undercroft.formats.ima.inode import FIELDS as INODE_FIELDS
from undercroft.policy import ReferenceRules
from undercroft.reference.files import compile_files
from undercroft.reference.model import Provenance, ReferenceValue
from undercroft.testing.fuzzing import Suite, Target, fuzz_by_hand
from undercroft.verify.ima import replay_ima
from undercroft.verify.ima_signature import load_key
from undercroft.verify.ima_state import parse_state
from undercroft.verify.ima_walk import check_template_hashes, replay_pcrs

VECTORS = Path(__file__).parents[1] / "vectors" / "ima"
SHA256 = HashAlgorithm.SHA256
_SH = ReferenceValue((SHA256.digest(b"/init"),), "init", Provenance(Grade.PACKAGE, "base"))
JUDGE = ImaJudge(ImaRules(ReferenceRules((Grade.PACKAGE,))), compile_files({"/init": (_SH,)}))


def fuzz_binary(data: bytes) -> None:
    """Parse a binary list in both byte orders."""
    for order in ("little", "big"):
        try:
            measurements = parse_binary(data, order=order)
        except FormatError:
            continue
        assert encode_binary(measurements) == data
        assert measurements.binary_size(len(measurements)) == len(data)
        use(measurements)


def fuzz_ascii(data: bytes) -> None:
    """Parse an ASCII list."""
    try:
        measurements = parse_ascii(data)
    except FormatError:
        return
    assert encode_ascii(measurements) == data
    use(measurements)


def use(measurements: ImaList) -> None:
    """Show, replay and judge a list that parsed."""
    assert len(measurements) == sum(run.stop - run.start for run in measurements.runs)
    for entry in measurements:
        entry_json(entry)
    check_template_hashes(measurements)
    quoted = PcrBank(SHA256, replay_pcrs(measurements, SHA256))
    try:
        replayed = replay_ima(measurements, quoted, reset_count=1)
    except VerificationError:
        return
    assert replayed.vouched == len(measurements)
    appraise_ima(replayed, JUDGE, [quoted])


def fuzz_parts(data: bytes) -> None:
    """Parse what stands inside entries, and what we keep ourselves."""
    for parse in (parse_signature, parse_state, parse_carried):
        try:
            value = parse(data)
        except FormatError:
            continue
        assert value.encode() == data
    fields = dict(zip(INODE_FIELDS, data.split(b"\xff"), strict=False))
    try:
        inode = parse_inode(fields, "little")
    except FormatError:
        pass
    else:
        assert inode.encode("little").items() >= fields.items()
    for act in (detect, load_key):
        try:
            act(data)
        except FormatError:
            continue
    for name in (b".ima", b"dm_table_load", b"kexec-cmdline", b"other"):
        decode_buffer(name, data)


TARGETS: dict[str, Target] = {
    "binary": fuzz_binary,
    "ascii": fuzz_ascii,
    "parts": fuzz_parts,
}
SUITE = Suite(
    Path(__file__),
    TARGETS,
    (VECTORS / "made", VECTORS / "recorded", VECTORS / "evmctl"),
    frozenset({".bin", ".binary", ".ascii", ".sig", ".der"}),
)

if __name__ == "__main__":
    sys.exit(fuzz_by_hand(__file__, TARGETS))
