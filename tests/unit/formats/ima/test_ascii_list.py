from __future__ import annotations

import hashlib
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.ima import encode_ascii, parse_ascii, parse_binary
from undercroft.testing.ima import SimulatedIma, boot_pcrs

HASH = b"ab" * 20
DIGEST = b"sha256:" + b"cd" * 32
GOOD = b"10 " + HASH + b" ima-ng " + DIGEST + b" /bin/sh\n"


def test_a_line_is_an_entry() -> None:
    entry = parse_ascii(GOOD)[0]
    assert entry.pcr == 10
    assert entry.claimed_template_hash == bytes.fromhex("ab" * 20)
    assert entry.name == b"/bin/sh"
    assert entry.template_data == (
        b"\x28\0\0\0sha256:\0" + bytes.fromhex("cd" * 32) + b"\x08\0\0\0/bin/sh\0"
    )


def test_a_small_pcr_index_is_padded() -> None:
    line = b" 9" + GOOD[2:]
    assert parse_ascii(line)[0].pcr == 9
    assert encode_ascii(parse_ascii(line)) == line


def test_no_line_is_a_list() -> None:
    assert len(parse_ascii(b"")) == 0


def test_an_empty_name_is_kept() -> None:
    line = b"10 " + HASH + b" ima-ng " + DIGEST + b" \n"
    entry = parse_ascii(line)[0]
    assert entry.fields()["n-ng"] == b"\0"
    assert encode_ascii(parse_ascii(line)) == line


LINE = b"10 " + HASH + b" "
BAD = {
    "no-newline": (GOOD[:-1], "the last line has no newline"),
    "empty-line": (GOOD + b"\n", "does not start with a PCR"),
    "pcr": (b"24" + GOOD[2:], "does not start with a PCR"),
    "pcr-words": (b"xx" + GOOD[2:], "does not start with a PCR"),
    "pcr-zero-padded": (b"09" + GOOD[2:], "does not start with a PCR"),
    "pcr-tab": (b"10\t" + GOOD[3:], "does not start with a PCR"),
    "hash-upper": (GOOD.replace(b"ab", b"AB"), "lower-case hexadecimal"),
    "hash-odd": (GOOD.replace(b"ab", b"abc", 1), "lower-case hexadecimal"),
    "hash-short": (GOOD.replace(b"ab", b"", 1), "a sha1 template hash has 20 bytes"),
    "no-template": (b"10 " + HASH + b"\n", "the line has no template name"),
    "template-long": (LINE + b"x" * 256 + b"\n", "the line has no template name"),
    "template-unknown": (LINE + b"ima-2030 a b\n", "an unknown template"),
    "field-missing": (LINE + b"ima-ng " + DIGEST + b"\n", "2 fields, not 1"),
    "field-too-many": (LINE + b"ima-ng " + DIGEST + b" /a b\n", "2 fields, not 3"),
    "digest-empty": (LINE + b"ima-ng  /a\n", "field d-ng: it is empty"),
    "digest-hex": (LINE + b"ima-ng sha256:zz /a\n", "field d-ng: not pairs of"),
    "digest-size": (LINE + b"ima-ng sha256:ab /a\n", "a sha256 digest has 32 bytes"),
    "digest-colon": (LINE + b"ima-ng :" + HASH + b" /a\n", "a colon and no algorithm"),
    "uid-words": (LINE + b"d-ng|n-ng|iuid " + DIGEST + b" /a root\n", "not a decimal number"),
    "uid-padded": (LINE + b"d-ng|n-ng|iuid " + DIGEST + b" /a 01\n", "not a decimal number"),
    "uid-large": (LINE + b"d-ng|n-ng|iuid " + DIGEST + b" /a 4294967296\n", "does not fit in 4"),
    "original-digest": (LINE + b"ima " + b"ab" * 16 + b" /a\n", "ima template has 20 bytes"),
    "original-name": (LINE + b"ima " + HASH + b" " + b"n" * 256 + b"\n", "at most 255 bytes"),
    "original-nul": (LINE + b"ima " + HASH + b" a\0b\n", "the ima template has a NUL"),
}


@pytest.mark.parametrize("before", [b"", GOOD], ids=["first", "second"])
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_refused_with_the_lines_offset(case: str, before: bytes) -> None:
    data, reason = BAD[case]
    with pytest.raises(FormatError, match=reason) as refusal:
        parse_ascii(before + data)
    assert len(before) <= refusal.value.offset < len(before + data)


def test_a_name_that_would_break_the_list_is_not_written() -> None:
    kernel = SimulatedIma(boot_pcrs(HashAlgorithm.SHA1))
    kernel.entry(b"/a\n10 x", hashlib.sha256(b"").digest())
    with pytest.raises(ValueError, match="no ASCII form"):
        encode_ascii(parse_binary(kernel.binary))
    with pytest.raises(FormatError):
        parse_ascii(kernel.ascii)


@settings(deadline=None)
@given(st.integers(0, len(GOOD) * 2), st.binary(max_size=6))
def test_damage_is_refused_or_encodes_to_itself(at: int, patch: bytes) -> None:
    data = GOOD * 2
    data = data[:at] + patch + data[at + len(patch) :]
    try:
        parsed = parse_ascii(data)
    except FormatError:
        return
    assert encode_ascii(parsed) == data


@settings(deadline=None)
@given(
    st.from_regex(rb"( [0-9]|1[0-9]) [0-9a-f]{40} (ima-ng|ima|d\|n|n-ng\|iuid) [^ \n]* [^ \n]*\n")
)
def test_lines_that_look_right(line: bytes) -> None:
    line = re.sub(rb"\n+\Z", b"\n", line)
    try:
        parsed = parse_ascii(line)
    except FormatError:
        return
    assert encode_ascii(parsed) == line
