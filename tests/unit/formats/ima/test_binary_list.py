from __future__ import annotations

import hashlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm
from undercroft.formats.ima import ImaList, encode_ascii, encode_binary, parse_ascii, parse_binary
from undercroft.formats.ima.measurements import Run
from undercroft.formats.ima.template import BUILTIN_TEMPLATES, Template, template_named
from undercroft.testing.ima import SimulatedIma, boot_pcrs

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
SIGNATURE = bytes.fromhex("03020400112233") + b"\0\x04abcd"
EXTRA: dict[str, dict[str, bytes]] = {
    "ima-sig": {"sig": SIGNATURE},
    "ima-sigv2": {"sig": SIGNATURE},
    "ima-modsig": {
        "sig": b"",
        "d-modsig": b"sha512:\0" + bytes(range(64)),
        "modsig": b"\x30\x82pkcs7",
    },
    "evm-sig": {
        "evmsig": b"\x05\x02\x04keyi\0\x04sign",
        "xattrnames": b"security.selinux|security.ima\0",
        "xattrlengths": struct.pack("<II", 3, 4),
        "xattrvalues": b"abcdefg",
        "iuid": struct.pack("<I", 1000),
        "igid": struct.pack("<I", 0),
        "imode": struct.pack("<H", 0o100755),
    },
    "d-ng|n-ng|iuid": {"iuid": struct.pack("<I", 4294967295)},
}
TEMPLATES = [*(name.decode() for name in BUILTIN_TEMPLATES), "d-ng|n-ng|iuid", "d|n", "n-ng|d-ng"]


def simulated(template: str, **options: object) -> SimulatedIma:
    kernel = SimulatedIma(boot_pcrs(SHA1, SHA256), template=template, **options)  # type: ignore[arg-type]
    kernel.boot_aggregate()
    if "d" in template.split("|"):
        kernel.entry("/usr/bin/true", b"\x11" * 20, EXTRA.get(template))
        kernel.entry("/usr/bin/false", b"\x22" * 20)
        return kernel
    kernel.measure("/usr/bin/true", b"true", EXTRA.get(template))
    kernel.measure("/usr/bin/false", b"false", EXTRA.get(template))
    kernel.violation("/var/log/messages")
    kernel.buffer("kexec-cmdline", b"root=/dev/vda1 quiet")
    kernel.measure("/usr/lib/x.so", b"x")
    kernel.measure("/etc/motd with space", b"hello", EXTRA.get(template))
    return kernel


@pytest.fixture(params=TEMPLATES)
def kernel(request: pytest.FixtureRequest) -> SimulatedIma:
    template: str = request.param
    if template == "d|n":
        kernel = SimulatedIma(boot_pcrs(SHA1, SHA256), template=template)
        kernel.entry("boot_aggregate", bytes(20))
        kernel.entry("/usr/bin/true", b"\x11" * 20)
        return kernel
    return simulated(template)


def test_every_template_encodes_to_what_was_parsed(kernel: SimulatedIma) -> None:
    parsed = parse_binary(kernel.binary)
    assert len(parsed) == kernel.count
    assert encode_binary(parsed) == kernel.binary
    assert parsed.binary_size(len(parsed)) == len(kernel.binary)


def test_both_forms_are_the_same_list(kernel: SimulatedIma) -> None:
    parsed = parse_ascii(kernel.ascii)
    assert parsed == parse_binary(kernel.binary)
    assert encode_ascii(parsed) == kernel.ascii


@pytest.mark.parametrize("template", ["ima", "ima-ng", "ima-sig", "evm-sig"])
def test_big_endian_lists(template: str) -> None:
    kernel = SimulatedIma(boot_pcrs(SHA256, SHA1), template=template, order="big")
    kernel.boot_aggregate()
    kernel.measure("/usr/bin/true", b"true")
    kernel.measure("/usr/bin/false", b"false")
    parsed = parse_binary(kernel.binary, order="big")
    assert encode_binary(parsed) == kernel.binary
    assert parse_ascii(kernel.ascii, order="big") == parsed


def test_entries_show_their_fields() -> None:
    parsed = parse_binary(simulated("evm-sig").binary)
    entry = parsed[1]
    assert (entry.index, entry.pcr, entry.name) == (1, 10, b"/usr/bin/true")
    assert entry.fields() == {
        "d-ng": b"sha256:\0" + hashlib.sha256(b"true").digest(),
        "n-ng": b"/usr/bin/true\0",
        **EXTRA["evm-sig"],
    }
    assert str(entry.digest) == "sha256:" + hashlib.sha256(b"true").hexdigest()
    assert not entry.is_violation
    assert parsed[3].is_violation
    assert parsed[4].fields()["buf"] == b"root=/dev/vda1 quiet"
    assert [e.path for e in parsed][-1] == "/etc/motd_with_space"
    assert parsed.violations() == [3]


def test_the_original_template_hashes_a_padded_name() -> None:
    kernel = simulated("ima")
    entry = parse_binary(kernel.binary)[1]
    assert entry.template_data == hashlib.sha1(b"true").digest() + b"/usr/bin/true".ljust(
        256, b"\0"
    )
    assert hashlib.sha1(entry.template_data).digest() == entry.claimed_template_hash
    assert entry.fields() == {"d": hashlib.sha1(b"true").digest(), "n": b"/usr/bin/true\0"}


def test_a_list_of_another_banks_hashes() -> None:
    parsed = parse_binary(simulated("ima-ng").binary)
    hashes = tuple(SHA256.hash(data) for data in parsed.template_data)
    sha256 = ImaList("little", SHA256, parsed.runs, hashes, parsed.template_data)
    assert parse_binary(encode_binary(sha256), hash_algorithm=SHA256) == sha256
    assert parse_ascii(encode_ascii(sha256), hash_algorithm=SHA256) == sha256


def test_entries_alike_share_a_run() -> None:
    parsed = parse_binary(simulated("ima-modsig").binary)
    assert parsed.runs[0] == Run(
        0, 4, 10, BUILTIN_TEMPLATES[b"ima-modsig"], b"\x28\0\0\0sha256:\0", 32
    )
    assert [(run.start, run.stop) for run in parsed.runs] == [(0, 4), (4, 5), (5, 7)]
    assert parsed.pcrs == (10,)


def test_an_unknown_template_stays_opaque() -> None:
    body = b"\x0a\0\0\0" + bytes(range(20)) + b"\x08\0\0\0ima-2030" + b"\x03\0\0\0abc"
    parsed = parse_binary(body)
    entry = parsed[0]
    assert entry.template == Template(b"ima-2030", None)
    assert (entry.name, entry.fields(), entry.digest) == (b"", {}, None)
    assert encode_binary(parsed) == body
    with pytest.raises(ValueError, match="no ASCII form"):
        encode_ascii(parsed)


def test_a_template_without_a_name_or_a_digest() -> None:
    kernel = SimulatedIma(boot_pcrs(SHA1), template="d-ng|iuid")
    kernel.measure("/x", b"x", {"iuid": bytes(4)})
    entry = parse_binary(kernel.binary)[0]
    assert (entry.name, entry.digest is None) == (b"", False)
    kernel = SimulatedIma(boot_pcrs(SHA1), template="n-ng|iuid")
    kernel.measure("/x", b"x", {"iuid": bytes(4)})
    entry = parse_binary(kernel.binary)[0]
    assert (entry.name, entry.digest) == (b"/x", None)


def test_a_field_that_stands_twice() -> None:
    kernel = SimulatedIma(boot_pcrs(SHA1), template="d-ng|n-ng|n-ng")
    kernel.measure("/x", b"x")
    parsed = parse_binary(kernel.binary)
    assert encode_ascii(parsed) == kernel.ascii
    assert list(parsed[0].fields()) == ["d-ng", "n-ng"]


def test_the_violation_digest_of_old_kernels_is_20_zero_bytes() -> None:
    kernel = SimulatedIma(boot_pcrs(SHA1))
    kernel.entry("/a", bytes(20), name="sha256", violation=True)
    kernel.entry("/b", bytes(20), name="sha256", violation=True)
    kernel.measure("/c", b"c")
    parsed = parse_binary(kernel.binary)
    assert encode_binary(parsed) == kernel.binary
    assert [len(run.digest_head) for run in parsed.runs] == [12, 12]
    digest = parsed[0].digest
    assert digest is not None
    assert digest.digest is None


def test_the_short_digest_of_a_violation_has_to_be_zero() -> None:
    kernel = SimulatedIma(boot_pcrs(SHA1))
    kernel.entry("/a", bytes(20), name="sha256", violation=True)
    kernel.entry("/b", b"\x01" * 20, name="sha256", violation=True)
    with pytest.raises(FormatError, match="a sha256 digest has 32 bytes, not 20"):
        parse_binary(kernel.binary)


def test_no_entry_is_a_list() -> None:
    empty = parse_binary(b"")
    assert len(empty) == 0
    assert encode_binary(empty) == encode_ascii(empty) == b""
    assert empty.violations() == []
    assert empty.binary_size(0) == 0
    with pytest.raises(IndexError):
        empty[0]


def test_the_rest_of_a_list_is_a_list() -> None:
    kernel = simulated("ima-sig")
    whole = parse_binary(kernel.binary)
    for count in range(kernel.count + 1):
        rest = parse_binary(kernel.binary[whole.binary_size(count) :])
        assert rest.template_data == whole.template_data[count:]


def test_template_names_are_looked_up() -> None:
    assert template_named(b"ima-ng").fields == ("d-ng", "n-ng")
    assert template_named(b"d-ng|n-ng|imode").fields == ("d-ng", "n-ng", "imode")
    assert template_named(b"d-ng||n-ng").fields is None
    assert template_named(b"|".join([b"d-ng"] * 16)).fields is None
    assert template_named(b"\xff").fields is None


def entry(
    *,
    pcr: int = 10,
    name: bytes = b"ima-ng",
    digest: bytes = b"sha256:\0" + bytes(32),
    event: bytes = b"/bin/sh\0",
    tail: bytes = b"",
) -> bytes:
    data = struct.pack("<I", len(digest)) + digest + struct.pack("<I", len(event)) + event + tail
    hashed = hashlib.sha1(data).digest()
    head = struct.pack("<I", pcr) + hashed + struct.pack("<I", len(name)) + name
    return head + struct.pack("<I", len(data)) + data


GOOD = entry()
BAD = {
    "pcr": (entry(pcr=24), "no such PCR"),
    "pcr-cut": (b"\x0a\0", "the PCR index is cut short"),
    "hash-cut": (GOOD[:20], "the template hash is longer than the input"),
    "no-template-name": (entry(name=b""), "the template name is not printable"),
    "template-name-binary": (entry(name=b"ima\xff"), "the template name is not printable"),
    "template-name-control": (entry(name=b"ima\n"), "the template name is not printable"),
    "template-name-space": (entry(name=b"ima ng"), "the template name is not printable"),
    "template-name-long": (entry(name=b"x" * 256), "the template name is too large"),
    "data-cut": (GOOD[:-1], "the template data is longer than the input"),
    "data-length-huge": (
        GOOD[:34] + b"\xff\xff\xff\xff" + GOOD[38:],
        "the template data is longer than the input",
    ),
    "field-missing": (
        GOOD[:34] + struct.pack("<I", 44) + GOOD[38:82],
        "the template has 2 fields, not 1",
    ),
    "field-too-many": (entry(tail=b"\0\0\0\0"), "the template has 2 fields, not 3"),
    "field-length-cut": (entry(tail=b"\x01"), "a field is longer than the template data"),
    "field-length-huge": (entry(tail=b"\xff\xff\xff\xff"), "a field is longer"),
    "digest-empty": (entry(digest=b""), "it is empty"),
    "digest-without-algorithm": (entry(digest=bytes(32)), "no colon and NUL"),
    "digest-short": (entry(digest=b"sha256:\0" + bytes(31)), "a sha256 digest has 32 bytes"),
    "digest-endless": (entry(digest=b"new:\0" + bytes(129)), "longer than any that there is"),
    "digest-algorithm-odd": (entry(digest=b"SHA256:\0" + bytes(32)), "hash algorithm's name"),
    "digest-unnamed": (entry(digest=b":\0" + bytes(32)), "without an algorithm has 16 or 20"),
    "name-empty": (entry(event=b""), "it is empty"),
    "name-unended": (entry(event=b"/bin/sh"), "a string is not ended by a NUL"),
    "digest-type": (
        entry(name=b"ima-ngv2", digest=b"file:sha256:\0" + bytes(32)),
        "neither ima nor verity",
    ),
    "digest-type-missing": (
        entry(name=b"ima-ngv2", digest=b"ima:\0" + bytes(32)),
        "neither ima nor verity",
    ),
    "uid-size": (entry(name=b"d-ng|n-ng|iuid", tail=b"\x02\0\0\0ab"), "4 bytes has 2"),
    "mode-size": (entry(name=b"d-ng|n-ng|imode", tail=b"\x04\0\0\0abcd"), "2 bytes has 4"),
    "xattr-lengths": (
        entry(name=b"d-ng|n-ng|xattrlengths", tail=b"\x03\0\0\0abc"),
        "that 4 does not divide",
    ),
    "original-name-long": (
        GOOD[:24] + b"\x03\0\0\0ima" + bytes(20) + b"\0\x01\0\0" + b"n" * 256,
        "the event name is too large",
    ),
    "original-name-nul": (
        GOOD[:24] + b"\x03\0\0\0ima" + bytes(20) + b"\x02\0\0\0n\0",
        "the event name has a NUL",
    ),
}


@pytest.mark.parametrize("before", [b"", GOOD, GOOD * 2], ids=["first", "second", "third"])
@pytest.mark.parametrize("case", BAD, ids=str)
def test_bad_input_is_refused_wherever_it_stands(case: str, before: bytes) -> None:
    data, reason = BAD[case]
    with pytest.raises(FormatError, match=reason) as refusal:
        parse_binary(before + data)
    assert len(before) <= refusal.value.offset <= len(before + data)


@pytest.mark.parametrize("tail", [b"\x05\0\0\0abcd", b"\x03\0\0\0abcd", b"abc", b"\xff" * 4])
def test_a_signature_field_that_does_not_fit(tail: bytes) -> None:
    good = entry(name=b"ima-sig", tail=b"\x04\0\0\0abcd")
    assert len(parse_binary(good * 3)) == 3
    with pytest.raises(FormatError):
        parse_binary(good * 2 + entry(name=b"ima-sig", tail=tail))


@pytest.mark.parametrize("size", [0, 9, 0xFFFFFFFF])
@pytest.mark.parametrize("name", [b"ima-ng", b"ima-sig"])
def test_a_name_length_that_does_not_fit(name: bytes, size: int) -> None:
    good = entry(name=name, tail=b"\0\0\0\0" if name == b"ima-sig" else b"")
    at = 4 + 20 + 4 + len(name) + 4 + 4 + 40
    bad = good[:at] + struct.pack("<I", size) + good[at + 4 :]
    with pytest.raises(FormatError):
        parse_binary(good + bad)


def test_a_name_with_a_nul_inside_is_kept_and_shown() -> None:
    data = GOOD + entry(event=b"/bin/sh\0evil\0")
    parsed = parse_binary(data)
    assert parsed[1].name == b"/bin/sh\0evil"
    assert parsed[1].path == "/bin/sh\\x00evil"
    assert encode_binary(parsed) == data


def test_a_digest_of_an_unknown_algorithm_is_kept() -> None:
    data = entry(digest=b"blake3:\0" + bytes(32)) * 2
    digest = parse_binary(data)[1].digest
    assert digest is not None
    assert (digest.name, digest.algorithm, digest.digest) == ("blake3", None, None)
    assert str(digest) == "blake3:" + "00" * 32


def test_digests_of_old_lists_have_no_algorithm() -> None:
    data = entry(digest=b":\0" + bytes(20)) * 2
    parsed = parse_binary(data)
    assert str(parsed[1].digest) == "digest:" + "00" * 20
    assert parse_ascii(encode_ascii(parsed)) == parsed


def test_fs_verity_digests_are_told_apart() -> None:
    data = entry(name=b"ima-ngv2", digest=b"verity:sha256:\0" + bytes(32)) * 2
    digest = parse_binary(data)[1].digest
    assert digest is not None
    assert digest.kind == "verity"
    assert str(digest) == "verity:sha256:" + "00" * 32


NAMES = st.binary(min_size=1, max_size=40).filter(lambda b: b"\0" not in b)
FILES = st.lists(
    st.tuples(
        st.sampled_from(["ima", "ima-ng", "ima-sig", "ima-ngv2", "ima-buf", "d-ng|n-ng|sig|iuid"]),
        NAMES,
        st.binary(max_size=9),
        st.sampled_from([10, 10, 11]),
        st.booleans(),
    ),
    max_size=12,
)


@settings(deadline=None)
@given(FILES, st.sampled_from(["little", "big"]))
def test_any_mixture_of_entries(
    files: list[tuple[str, bytes, bytes, int, bool]], order: str
) -> None:
    kernel = SimulatedIma([], order=order)  # type: ignore[arg-type]
    for template, name, content, pcr, violation in files:
        digest = hashlib.new("sha1" if template == "ima" else "sha256", content).digest()
        extra = {"sig": content, "buf": content, "iuid": b"uids"}
        kernel.entry(name, digest, extra, template=template, pcr=pcr, violation=violation)
    parsed = parse_binary(kernel.binary, order=order)  # type: ignore[arg-type]
    assert encode_binary(parsed) == kernel.binary
    assert [e.name for e in parsed] == [f[1].replace(b" ", b"_") for f in files]
    assert [e.pcr for e in parsed] == [f[3] for f in files]
    assert [e.template.name.decode() for e in parsed] == [f[0] for f in files]
    if not any(b"\n" in f[1] for f in files):
        assert encode_ascii(parsed) == kernel.ascii
        assert parse_ascii(kernel.ascii, order=order) == parsed  # type: ignore[arg-type]


@settings(deadline=None)
@given(st.integers(0, 400), st.binary(max_size=8))
def test_damage_is_refused_or_encodes_to_itself(at: int, patch: bytes) -> None:
    good = entry() + entry(event=b"/usr/bin/env\0") + entry(name=b"ima-sig", tail=b"\0\0\0\0")
    data = good[:at] + patch + good[at + len(patch) :]
    try:
        parsed = parse_binary(data)
    except FormatError:
        return
    assert encode_binary(parsed) == data
