from __future__ import annotations

import datetime
import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import replace

import msgspec
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import pkcs7
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.appraise.ima import ImaAppraisal, appraise_ima
from undercroft.appraise.ima_carried import parse_carried
from undercroft.appraise.ima_rules import ImaJudge, ImaRules, rules_of
from undercroft.appraise.model import Judgement, verdict_of
from undercroft.base import (
    Finding,
    FormatError,
    Grade,
    HashAlgorithm,
    JsonValue,
    Outcome,
    PcrBank,
    VerificationError,
)
from undercroft.formats.ear import Tier
from undercroft.formats.ima import InodeMetadata, parse_binary
from undercroft.policy import (
    Action,
    BootRules,
    FileRules,
    Policy,
    QuoteRules,
    ReferenceRules,
    Requirement,
    ResultRules,
    SecureKernelRules,
)
from undercroft.reference.files import FileReferences, compile_files
from undercroft.reference.model import Provenance, ReferenceValue
from undercroft.testing.ima import SimulatedIma, boot_pcrs
from undercroft.verify.ima import replay_ima
from undercroft.verify.ima_signature import ImaKeyring, load_keyring

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
BOOT = boot_pcrs(SHA1, SHA256)
PACKAGE = Provenance(Grade.PACKAGE, "base-files", "12.4")
SEEN = Provenance(Grade.OBSERVED, note="seen once")
AFFIRMED = ReferenceRules((Grade.PACKAGE, Grade.BUILT), Action.WARN)
FILES = {f"/usr/bin/{name}": name.encode() for name in ("sh", "cat", "cp", "true")}


def references(
    files: Mapping[str, bytes] = FILES, *, provenance: Provenance = PACKAGE
) -> FileReferences:
    return compile_files(
        {
            path: (ReferenceValue((SHA256.digest(content),), path, provenance),)
            for path, content in files.items()
        },
        "debian 12",
    )


def judge(rules: ImaRules | None = None, known: FileReferences | None = None) -> ImaJudge:
    return ImaJudge(rules or ImaRules(AFFIRMED), references() if known is None else known)


def booted(template: str = "ima-ng", hash_name: str = "sha256") -> SimulatedIma:
    kernel = SimulatedIma(BOOT, template=template, hash_name=hash_name)
    kernel.boot_aggregate()
    for path, content in FILES.items():
        kernel.measure(path, content)
    return kernel


def appraised(
    kernel: SimulatedIma,
    by: ImaJudge | None = None,
    *,
    boot: list[PcrBank] | None = None,
    bank: HashAlgorithm = SHA256,
) -> ImaAppraisal:
    replayed = replay_ima(parse_binary(kernel.binary), kernel.bank(bank), reset_count=7)
    return appraise_ima(replayed, by or judge(), BOOT if boot is None else boot)


def only(appraisal: ImaAppraisal) -> Judgement:
    """Return the one deviation that was told."""
    _, _, _, deviation = appraisal.judgements
    return deviation


def summary(appraisal: ImaAppraisal) -> Judgement:
    return appraisal.judgements[2]


def kinds(appraisal: ImaAppraisal) -> JsonValue:
    return summary(appraisal).finding.details["kinds"]


def finding(one: Judgement) -> tuple[str, Outcome, Tier | None]:
    return one.finding.id, one.finding.outcome, one.tier


@pytest.mark.parametrize("template", ["ima-ng", "ima-sig", "ima-ngv2", "evm-sig", "n-ng|d-ng"])
def test_known_files_pass(template: str) -> None:
    appraisal = appraised(booted(template))
    replay, aggregate, files = appraisal.judgements
    assert finding(replay) == ("ima.replay", Outcome.PASS, None)
    assert finding(aggregate) == ("ima.boot-aggregate", Outcome.PASS, Tier.AFFIRMING)
    assert finding(files) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)
    assert files.finding.details["kinds"] == {"known": 4, "boot-aggregate": 1}
    assert files.finding.details["grades"] == {"package": 4}
    assert files.finding.summary == "5 entries: 4 known, 1 boot-aggregate"
    assert files.finding.source == "debian 12"
    assert verdict_of(appraisal.judgements) is Tier.AFFIRMING
    json.dumps([j.as_json() for j in appraisal.judgements])


def test_the_original_template_passes_too() -> None:
    known = compile_files(
        {p: (ReferenceValue((SHA1.digest(c),), p, PACKAGE),) for p, c in FILES.items()}
    )
    appraisal = appraised(booted("ima"), judge(known=known))
    assert finding(summary(appraisal)) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)
    assert kinds(appraisal) == {"known": 4, "boot-aggregate": 1}


def test_entries_after_the_quote_are_not_judged() -> None:
    kernel = booted()
    quoted = kernel.bank(SHA256)
    kernel.measure("/tmp/evil", b"evil")
    kernel.violation("/tmp/evil")
    replayed = replay_ima(parse_binary(kernel.binary), quoted, reset_count=7)
    appraisal = appraise_ima(replayed, judge(), BOOT)
    replay = appraisal.judgements[0].finding
    assert replay.details["pending"] == 2
    assert "2 more were measured after the quote" in replay.summary
    assert finding(summary(appraisal)) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)


def test_a_run_that_the_quote_cuts_off() -> None:
    kernel = booted()
    quoted = kernel.bank(SHA256)
    kernel.buffer("kernel_version", b"6.1")
    replayed = replay_ima(parse_binary(kernel.binary), quoted, reset_count=7)
    assert len(appraise_ima(replayed, judge(), BOOT).judgements) == 3


# --- one deviation each ------------------------------------------------------------------------


def test_a_changed_file_fails() -> None:
    kernel = booted()
    kernel.measure("/usr/bin/sh", b"trojan")
    appraisal = appraised(kernel)
    deviation = only(appraisal)
    assert finding(deviation) == ("ima.file", Outcome.FAIL, Tier.CONTRAINDICATED)
    assert finding(summary(appraisal)) == ("ima.files", Outcome.FAIL, Tier.CONTRAINDICATED)
    details = deviation.finding.details
    assert details["kind"] == "other-content"
    assert details["entry"] == 5
    assert details["path"] == "/usr/bin/sh"
    assert details["digest"] == f"sha256:{hashlib.sha256(b'trojan').hexdigest()}"
    assert details["expected"] == [
        {"digest": f"sha256:{hashlib.sha256(b'sh').hexdigest()}", "source": str(PACKAGE)}
    ]
    assert deviation.finding.source == str(PACKAGE)
    assert deviation.finding.summary == (
        "/usr/bin/sh is not what it should be (package: base-files 12.4)"
    )


def test_a_file_replaced_by_another_known_one_fails() -> None:
    kernel = booted()
    kernel.measure("/usr/bin/sh", b"cat")
    deviation = only(appraised(kernel))
    assert finding(deviation) == ("ima.file", Outcome.FAIL, Tier.CONTRAINDICATED)
    assert deviation.finding.summary.endswith("; it has the content of /usr/bin/cat")
    assert deviation.finding.details["content-of"] == [
        {"path": "/usr/bin/cat", "source": str(PACKAGE)}
    ]


def test_an_emptied_file_fails_and_says_so() -> None:
    kernel = booted()
    kernel.measure("/usr/bin/sh", b"")
    by = judge(known=references({**FILES, "/etc/motd": b""}))
    assert only(appraised(kernel, by)).finding.summary.endswith("; the file is empty")


@pytest.mark.parametrize(
    ("action", "tier"),
    [
        (Action.WARN, Tier.WARNING),
        (Action.INSUFFICIENT, Tier.NONE),
        (Action.CONTRAINDICATE, Tier.CONTRAINDICATED),
    ],
)
def test_an_unknown_path_does_what_the_rules_say(action: Action, tier: Tier) -> None:
    kernel = booted()
    kernel.measure("/usr/local/bin/sh", b"mine")
    appraisal = appraised(kernel, judge(ImaRules(AFFIRMED, unknown=action)))
    deviation = only(appraisal)
    assert finding(deviation) == ("ima.file", Outcome.UNKNOWN, tier)
    assert finding(summary(appraisal)) == ("ima.files", Outcome.UNKNOWN, tier)
    assert deviation.finding.details["nearest"] == ["/usr/bin/sh"]
    assert deviation.finding.summary == (
        "/usr/local/bin/sh is not a known path; the nearest known one is /usr/bin/sh"
    )


def test_a_known_content_at_an_unknown_path() -> None:
    kernel = booted()
    kernel.measure("/x", b"cat")
    deviation = only(appraised(kernel))
    assert deviation.finding.details["kind"] == "other-path"
    assert deviation.finding.outcome is Outcome.UNKNOWN
    assert deviation.finding.summary == (
        "/x is not a known path; it has the content of /usr/bin/cat"
    )
    assert deviation.finding.details["nearest"] == []


def test_a_digest_in_an_algorithm_without_references() -> None:
    kernel = SimulatedIma(BOOT, hash_name="sha512")
    kernel.boot_aggregate()
    kernel.measure("/usr/bin/sh", b"sh")
    appraisal = appraised(kernel)
    deviation = only(appraisal)
    assert deviation.finding.details["kind"] == "other-algorithm"
    assert finding(summary(appraisal)) == ("ima.files", Outcome.UNKNOWN, Tier.CONTRAINDICATED)
    assert "no reference for it is in the algorithm" in deviation.finding.summary


def test_of_an_endless_name_the_start_is_shown() -> None:
    kernel = booted()
    kernel.measure(b"/" + b"\xff" * 10_000, b"x")
    path = only(appraised(kernel)).finding.details["path"]
    assert path == "/" + "\\xff" * 4095 + "…"


def test_a_template_without_a_digest_tells_nothing() -> None:
    kernel = booted()
    kernel.entry("/usr/bin/sh", b"", {"iuid": bytes(4)}, template="n-ng|iuid")
    deviation = only(appraised(kernel))
    assert finding(deviation) == ("ima.file", Outcome.UNKNOWN, Tier.CONTRAINDICATED)
    assert "no digest" in deviation.finding.summary


def test_an_unknown_template_is_told() -> None:
    kernel = booted()
    kernel.entry("/usr/bin/sh", hashlib.sha256(b"sh").digest())
    opaque = kernel.binary.replace(b"\x06\0\0\0ima-ng", b"\x06\0\0\0ima-xx")
    replayed = replay_ima(parse_binary(kernel.binary), kernel.bank(SHA256), reset_count=7)
    changed = replace(replayed, measurements=parse_binary(opaque))
    appraisal = appraise_ima(changed, judge(), BOOT)
    assert finding(appraisal.judgements[3]) == (
        "ima.template",
        Outcome.UNKNOWN,
        Tier.CONTRAINDICATED,
    )
    assert appraisal.judgements[3].finding.details["template"] == "ima-xx"
    assert kinds(appraisal) == {"unknown-template": 6}


# --- violations --------------------------------------------------------------------------------


def violated(path: str, rules: ImaRules) -> ImaAppraisal:
    kernel = booted()
    kernel.violation(path)
    return appraised(kernel, judge(rules))


@pytest.mark.parametrize(
    ("action", "tier"),
    [(Action.WARN, Tier.WARNING), (Action.CONTRAINDICATE, Tier.CONTRAINDICATED)],
)
def test_a_violation_does_what_the_rules_say(action: Action, tier: Tier) -> None:
    appraisal = violated("/var/log/wtmp", ImaRules(AFFIRMED, violation=action))
    deviation = only(appraisal)
    assert finding(deviation) == ("ima.violation", Outcome.FAIL, tier)
    assert finding(summary(appraisal)) == ("ima.files", Outcome.FAIL, tier)
    assert deviation.finding.details["claimed-path"] == "/var/log/wtmp"
    assert "path" not in deviation.finding.details


def test_a_violation_may_be_ruled_on_by_its_claimed_path() -> None:
    rules = ImaRules(AFFIRMED, violations=(("/var/log/*", None), ("/var/*", Action.WARN)))
    ignored = violated("/var/log/wtmp", rules)
    assert finding(summary(ignored)) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)
    assert kinds(ignored) == {"known": 4, "boot-aggregate": 1, "violation-stated": 1}
    assert only(violated("/var/x", rules)).tier is Tier.WARNING
    assert only(violated("/etc/x", rules)).tier is Tier.CONTRAINDICATED


def test_a_violation_that_claims_to_be_a_known_file_is_still_a_violation() -> None:
    kernel = booted()
    # Nothing vouches for what a violation's entry says, so it may say anything.
    kernel.entry("/usr/bin/sh", hashlib.sha256(b"sh").digest(), violation=True)
    appraisal = appraised(kernel)
    assert finding(only(appraisal)) == ("ima.violation", Outcome.FAIL, Tier.CONTRAINDICATED)
    assert kinds(appraisal) == {"known": 4, "boot-aggregate": 1, "violation": 1}


def test_a_violation_that_claims_an_excluded_path_is_still_a_violation() -> None:
    rules = ImaRules(AFFIRMED, exclude=("/var/*",))
    assert only(violated("/var/log/wtmp", rules)).finding.id == "ima.violation"


def test_violations_among_entries_of_several_runs() -> None:
    kernel = booted()
    known = hashlib.sha256(b"sh").digest()
    for _ in range(3):
        kernel.entry("/usr/bin/sh", known, violation=True)
        kernel.buffer("kernel_version", b"6.1")
        kernel.measure("/usr/bin/sh", b"sh")
    rules = ImaRules(AFFIRMED, buffers=(("*", None),))
    assert kinds(appraised(kernel, judge(rules))) == {
        "known": 7,
        "boot-aggregate": 1,
        "violation": 3,
        "buffer-stated": 3,
    }


# --- exclusion, and nothing left to compare ----------------------------------------------------


def test_excluded_paths_are_counted_and_not_judged() -> None:
    kernel = booted()
    kernel.measure("/tmp/a", b"a")
    kernel.measure("/tmp/b/c", b"c")
    appraisal = appraised(kernel, judge(ImaRules(AFFIRMED, exclude=("/tmp/*", "/run/*"))))
    assert finding(summary(appraisal)) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)
    assert kinds(appraisal) == {"known": 4, "boot-aggregate": 1, "excluded": 2}


def test_paths_of_any_bytes_can_be_excluded() -> None:
    kernel = booted()
    kernel.entry("/tmp/é\n".encode() + b"\xff", bytes(32))
    appraisal = appraised(kernel, judge(ImaRules(AFFIRMED, exclude=("/tmp/é?\udcff",))))
    assert len(appraisal.judgements) == 3


def test_excluding_everything_passes_nothing() -> None:
    appraisal = appraised(booted(), judge(ImaRules(AFFIRMED, exclude=("*",)), references({})))
    assert finding(summary(appraisal)) == ("ima.files", Outcome.UNKNOWN, Tier.NONE)
    assert summary(appraisal).finding.summary.endswith("no file was found to be a known one")


def test_no_references_pass_nothing() -> None:
    rules = ImaRules(AFFIRMED, unknown=Action.WARN)
    appraisal = appraised(booted(), judge(rules, references({})))
    assert finding(summary(appraisal)) == ("ima.files", Outcome.UNKNOWN, Tier.NONE)


def test_a_list_without_files_passes_nothing() -> None:
    kernel = SimulatedIma(BOOT)
    kernel.boot_aggregate()
    assert finding(summary(appraised(kernel))) == ("ima.files", Outcome.UNKNOWN, Tier.NONE)


def test_a_failure_is_worse_than_nothing_to_compare() -> None:
    kernel = SimulatedIma(BOOT)
    kernel.boot_aggregate()
    kernel.violation("/x")
    rules = ImaRules(AFFIRMED, violation=Action.WARN)
    assert finding(summary(appraised(kernel, judge(rules)))) == (
        "ima.files",
        Outcome.FAIL,
        Tier.NONE,
    )


def test_references_of_a_lower_grade_count_for_less() -> None:
    appraisal = appraised(booted(), judge(known=references(provenance=SEEN)))
    assert finding(summary(appraisal)) == ("ima.files", Outcome.PASS, Tier.WARNING)
    assert summary(appraisal).finding.details["grades"] == {"observed": 4}


# --- boot_aggregate and kexec ------------------------------------------------------------------


def test_a_list_of_another_boot_fails() -> None:
    appraisal = appraised(booted(), boot=boot_pcrs(SHA256, seed=b"other"))
    aggregate = appraisal.judgements[1]
    assert finding(aggregate) == ("ima.boot-aggregate", Outcome.FAIL, Tier.CONTRAINDICATED)
    assert aggregate.finding.details["got"] != aggregate.finding.details["expected"]


def test_without_boot_pcrs_nobody_can_tell() -> None:
    aggregate = appraised(booted(), boot=[]).judgements[1]
    assert finding(aggregate) == ("ima.boot-aggregate", Outcome.UNKNOWN, Tier.NONE)


@pytest.mark.parametrize("action", [Action.WARN, Action.INSUFFICIENT])
def test_a_list_carried_over_a_kexec(action: Action) -> None:
    kernel = booted()
    kernel.boot_aggregate()
    kernel.measure("/usr/bin/sh", b"sh")
    deviation = only(appraised(kernel, judge(ImaRules(AFFIRMED, kexec=action))))
    assert deviation.finding.id == "ima.kexec"
    assert deviation.finding.outcome is Outcome.UNKNOWN
    assert "another kernel was started by kexec" in deviation.finding.summary


def test_a_kexec_whose_boot_aggregate_is_of_another_boot_fails() -> None:
    kernel = booted()
    kernel.entry("boot_aggregate", bytes(32))
    deviation = only(appraised(kernel))
    assert finding(deviation) == ("ima.kexec", Outcome.FAIL, Tier.CONTRAINDICATED)


def test_a_kexec_that_cannot_be_compared() -> None:
    kernel = booted()
    kernel.entry("boot_aggregate", bytes(64), name="sha512")
    kernel.entry("boot_aggregate", b"", {"iuid": bytes(4)}, template="n-ng|iuid")
    judgements = appraised(kernel).judgements
    assert [j.finding.id for j in judgements[3:]] == ["ima.kexec", "ima.kexec"]
    assert {j.finding.outcome for j in judgements[3:]} == {Outcome.UNKNOWN}


# --- buffers -----------------------------------------------------------------------------------


def buffered(event: str, data: bytes, rules: ImaRules) -> ImaAppraisal:
    kernel = booted()
    kernel.buffer(event, data)
    return appraised(kernel, judge(rules))


def test_a_buffer_that_no_rule_speaks_of() -> None:
    deviation = only(buffered("kernel_version", b"6.1.0", ImaRules(AFFIRMED)))
    assert finding(deviation) == ("ima.buffer", Outcome.UNKNOWN, Tier.CONTRAINDICATED)
    assert deviation.finding.details["event"] == "kernel_version"
    assert deviation.finding.details["says"] == "'6.1.0'"
    assert deviation.finding.details["sha256"] == hashlib.sha256(b"6.1.0").hexdigest()


def test_a_known_buffer_passes() -> None:
    rules = ImaRules(AFFIRMED, known_buffers=frozenset({hashlib.sha256(b"6.1.0").digest()}))
    appraisal = buffered("kernel_version", b"6.1.0", rules)
    assert kinds(appraisal) == {"known": 4, "boot-aggregate": 1, "buffer-known": 1}
    assert finding(summary(appraisal)) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)


def test_buffers_may_be_ruled_on_by_their_event() -> None:
    rules = ImaRules(AFFIRMED, buffers=(("dm_*", None), ("kernel_version", Action.WARN)))
    assert kinds(buffered("dm_table_load", b"x", rules)) == {
        "known": 4,
        "boot-aggregate": 1,
        "buffer-stated": 1,
    }
    assert only(buffered("kernel_version", b"x", rules)).tier is Tier.WARNING
    assert only(buffered(".ima", b"x", rules)).tier is Tier.CONTRAINDICATED


def test_a_kernel_loaded_for_kexec() -> None:
    deviation = only(buffered("kexec-cmdline", b"root=/dev/sda", ImaRules(AFFIRMED)))
    assert finding(deviation) == ("ima.kexec", Outcome.UNKNOWN, Tier.NONE)
    assert "root=/dev/sda" in str(deviation.finding.details["says"])


def test_a_buffer_that_is_not_what_its_digest_says() -> None:
    kernel = booted()
    kernel.entry("kernel_version", bytes(32), {"buf": b"6.1"}, template="ima-buf")
    deviation = only(appraised(kernel))
    assert finding(deviation) == ("ima.buffer", Outcome.FAIL, Tier.CONTRAINDICATED)
    assert deviation.finding.details["kind"] == "buffer-digest"


def test_a_buffer_whose_digest_we_cannot_compute() -> None:
    kernel = booted()
    kernel.entry("x", bytes(16), {"buf": b"6.1"}, template="ima-buf", name="md5")
    assert only(appraised(kernel)).finding.details["kind"] == "buffer"


def test_a_buffer_is_never_taken_for_a_file() -> None:
    kernel = booted()
    kernel.buffer("/usr/bin/sh", b"sh")
    assert only(appraised(kernel)).finding.id == "ima.buffer"


# --- signatures --------------------------------------------------------------------------------

KEY = ec.generate_private_key(ec.SECP256R1())
KEYRING = load_keyring(
    [
        (
            "vendor",
            KEY.public_key().public_bytes(
                serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
            ),
        )
    ]
)


def signed(content: bytes, key_id: bytes = KEYRING.keys[0].key_id) -> bytes:
    signature = KEY.sign(content, ec.ECDSA(hashes.SHA256()))
    return b"\x03\x02\x04" + key_id + len(signature).to_bytes(2, "big") + signature


def with_signature(
    path: str, content: bytes, sig: bytes, keyring: ImaKeyring = KEYRING
) -> ImaAppraisal:
    kernel = booted("ima-sig")
    kernel.measure(path, content, {"sig": sig})
    return appraised(kernel, judge(ImaRules(AFFIRMED, keyring=keyring)))


def test_a_signed_file_at_an_unknown_path_passes() -> None:
    appraisal = with_signature("/opt/tool", b"tool", signed(b"tool"))
    assert finding(summary(appraisal)) == ("ima.files", Outcome.PASS, Tier.AFFIRMING)
    assert kinds(appraisal) == {"known": 4, "boot-aggregate": 1, "signed": 1}


def test_a_signature_does_not_excuse_another_content_at_a_known_path() -> None:
    deviation = only(with_signature("/usr/bin/sh", b"tool", signed(b"tool")))
    assert deviation.finding.details["kind"] == "other-content"


def test_a_wrong_signature_fails() -> None:
    deviation = only(with_signature("/opt/tool", b"tool", signed(b"other")))
    assert finding(deviation) == ("ima.signature", Outcome.FAIL, Tier.CONTRAINDICATED)
    assert "not over this digest" in deviation.finding.summary


def test_a_malformed_signature_fails() -> None:
    deviation = only(with_signature("/opt/tool", b"tool", b"\x03\x02"))
    assert finding(deviation) == ("ima.signature", Outcome.FAIL, Tier.CONTRAINDICATED)


@pytest.mark.parametrize(
    ("sig", "keyring"),
    [(signed(b"tool", b"none"), KEYRING), (signed(b"tool"), ImaKeyring(())), (b"", KEYRING)],
    ids=["unknown-key", "no-keyring", "no-signature"],
)
def test_a_signature_that_says_nothing(sig: bytes, keyring: ImaKeyring) -> None:
    deviation = only(with_signature("/opt/tool", b"tool", sig, keyring))
    assert deviation.finding.details["kind"] == "unknown"


def test_an_evm_signature_says_nothing_here() -> None:
    deviation = only(with_signature("/opt/tool", b"tool", b"\x05" + signed(b"tool")[1:]))
    assert deviation.finding.details["kind"] == "unknown"


def certificate() -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "vendor")])
    day = datetime.datetime(2024, 1, 1)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 7, day)
    return builder.not_valid_after(day + datetime.timedelta(days=9999)).sign(KEY, hashes.SHA256())


CERTIFICATE = certificate()
CERTIFIED = load_keyring([("vendor", CERTIFICATE.public_bytes(serialization.Encoding.DER))])


def appended(content: bytes) -> bytes:
    """Return the PKCS#7 message that stands behind a signed file."""
    kind = pkcs7.PKCS7Options
    options = [kind.DetachedSignature, kind.Binary, kind.NoAttributes]
    builder = pkcs7.PKCS7SignatureBuilder().set_data(content)
    builder = builder.add_signer(CERTIFICATE, KEY, hashes.SHA256())
    return builder.sign(serialization.Encoding.DER, options)


def of_template(template: str, fields: Mapping[str, bytes]) -> ImaAppraisal:
    """Appraise a list in which /opt/tool has these further fields."""
    kernel = booted(template)
    kernel.measure("/opt/tool", b"tool", fields)
    return appraised(kernel, judge(ImaRules(AFFIRMED, keyring=CERTIFIED)))


def modsig(content: bytes, digest: bytes) -> dict[str, bytes]:
    return {"modsig": appended(content), "d-modsig": digest and b"sha256:\0" + digest}


def evmsig(mode: int = 0o755) -> dict[str, bytes]:
    content = b"\x04\x04" + hashlib.sha256(b"tool").digest()
    metadata = content + struct.pack("<QIIIHxx", 0, 0, 0, 0, 0o755)
    inode = InodeMetadata(0, 0, mode, ((b"security.ima", content),))
    return {**inode.encode("little"), "evmsig": b"\x05" + signed(metadata)[1:]}


PLAIN = hashlib.sha256(b"plain").digest()


@pytest.mark.parametrize(
    ("template", "fields"), [("ima-modsig", modsig(b"plain", PLAIN)), ("evm-sig", evmsig())]
)
def test_an_appended_or_a_metadata_signature_is_as_good(
    template: str, fields: Mapping[str, bytes]
) -> None:
    expected = {"known": 4, "boot-aggregate": 1, "signed": 1}
    assert kinds(of_template(template, fields)) == expected


@pytest.mark.parametrize(
    ("template", "fields"),
    [
        ("ima-modsig", modsig(b"other", PLAIN)),
        ("ima-modsig", modsig(b"plain", b"")),
        ("evm-sig", evmsig(mode=0o4755)),
        ("evm-sig", {**evmsig(), "iuid": b""}),
        # One that is right does not make up for one that is wrong.
        ("ima-modsig", {**modsig(b"plain", PLAIN), "sig": signed(b"other")}),
    ],
    ids=["content", "no-digest", "mode", "no-owner", "both"],
)
def test_a_wrong_one_of_those_fails(template: str, fields: Mapping[str, bytes]) -> None:
    deviation = only(of_template(template, fields))
    assert finding(deviation) == ("ima.signature", Outcome.FAIL, Tier.CONTRAINDICATED)


def test_a_known_file_needs_no_signature() -> None:
    appraisal = with_signature("/usr/bin/sh", b"sh", b"\x03\x02")
    assert kinds(appraisal) == {"known": 5, "boot-aggregate": 1}


# --- many deviations ---------------------------------------------------------------------------


def test_failures_are_told_first_and_the_rest_is_counted() -> None:
    kernel = booted()
    for index in range(30):
        kernel.measure(f"/unknown/{index}", b"?")
    for index in range(5):
        kernel.measure("/usr/bin/sh", b"%d" % index)
    appraisal = appraised(kernel, judge(ImaRules(AFFIRMED, max_findings=10)))
    told = appraisal.judgements[3:]
    assert [j.finding.outcome for j in told] == [Outcome.FAIL] * 5 + [Outcome.UNKNOWN] * 5
    details = summary(appraisal).finding.details
    assert details["not-told"] == 25
    assert details["kinds"] == {
        "known": 4,
        "boot-aggregate": 1,
        "unknown": 30,
        "other-content": 5,
    }
    assert summary(appraisal).tier is Tier.CONTRAINDICATED


def test_the_worst_tier_counts_also_where_it_is_not_told() -> None:
    kernel = booted()
    kernel.measure("/a", b"a")
    kernel.violation("/b")
    rules = ImaRules(AFFIRMED, unknown=Action.WARN, max_findings=0)
    appraisal = appraised(kernel, judge(rules))
    assert len(appraisal.judgements) == 3
    assert summary(appraisal).tier is Tier.CONTRAINDICATED


# --- going on ------------------------------------------------------------------------------------


def later(kernel: SimulatedIma, first: ImaAppraisal, by: ImaJudge | None = None) -> ImaAppraisal:
    carried = parse_carried(first.carried.encode())
    assert carried == first.carried
    rest = parse_binary(kernel.binary[carried.state.offset :])
    replayed = replay_ima(rest, kernel.bank(SHA256), reset_count=7, state=carried.state)
    return appraise_ima(replayed, by or judge(), BOOT, carried=carried)


def test_only_new_entries_are_judged_and_old_ones_still_count() -> None:
    kernel = booted()
    kernel.measure("/usr/bin/sh", b"trojan")
    first = appraised(kernel)
    kernel.measure("/usr/bin/cat", b"cat")
    kernel.measure("/unknown", b"?")
    appraisal = later(kernel, first)
    whole = appraised(kernel)
    assert appraisal.judgements[1:] == whole.judgements[1:]
    assert appraisal.carried == whole.carried
    assert appraisal.judgements[0].finding.details["new"] == 2


def test_nothing_new_changes_nothing() -> None:
    kernel = booted()
    kernel.measure("/unknown", b"?")
    first = appraised(kernel)
    again = later(kernel, first)
    assert again.judgements[1:] == first.judgements[1:]
    assert again.carried == first.carried


def test_what_is_carried_stays_small() -> None:
    kernel = booted()
    for index in range(500):
        kernel.measure(f"/unknown/{index}", b"?")
    appraisal = appraised(kernel)
    assert len(appraisal.judgements) == 103
    assert len(appraisal.carried.deviations) == 16
    assert len(appraisal.carried.encode()) < 8_000
    assert len(appraised(booted()).carried.encode()) < 300
    again = later(kernel, appraisal)
    assert kinds(again) == {"known": 4, "boot-aggregate": 1, "unknown": 500}
    assert summary(again).finding.details["not-told"] == 484


@settings(deadline=None)
@given(
    st.lists(st.sampled_from(["known", "changed", "unknown", "violation"]), max_size=10),
    st.integers(0, 10),
)
def test_cutting_an_appraisal_in_two_changes_nothing(entries: list[str], cut: int) -> None:
    kernel = booted()
    first = appraised(kernel)
    for index, kind in enumerate(entries):
        if index == cut:
            first = later(kernel, first)
        if kind == "violation":
            kernel.violation(f"/{index}")
        else:
            path = "/unknown" if kind == "unknown" else "/usr/bin/sh"
            kernel.measure(path, b"sh" if kind == "known" else b"%d" % index)
    assert later(kernel, first).carried == appraised(kernel).carried


def refused(check: str, first: ImaAppraisal | None, kernel: SimulatedIma, by: ImaJudge) -> None:
    state = appraised(kernel).carried.state
    replayed = replay_ima(parse_binary(b""), kernel.bank(SHA256), reset_count=7, state=state)
    with pytest.raises(VerificationError) as refusal:
        appraise_ima(replayed, by, BOOT, carried=first.carried if first else None)
    assert refusal.value.check == check


def test_new_entries_alone_are_not_a_whole_list() -> None:
    refused("ima.carried-state", None, booted(), judge())


def test_the_appraisal_of_another_list_is_not_gone_on_from() -> None:
    shorter = SimulatedIma(BOOT)
    shorter.boot_aggregate()
    refused("ima.carried-state", appraised(shorter), booted(), judge())


def test_the_appraisal_of_another_boot_is_not_gone_on_from() -> None:
    kernel = booted()
    first = appraised(kernel)
    state = msgspec.structs.replace(first.carried.state, reset_count=8)
    other = replace(first, carried=msgspec.structs.replace(first.carried, state=state))
    refused("ima.carried-state", other, kernel, judge())


def test_a_whole_list_is_not_added_to_a_carried_one() -> None:
    kernel = booted()
    first = appraised(kernel)
    replayed = replay_ima(parse_binary(kernel.binary), kernel.bank(SHA256), reset_count=7)
    with pytest.raises(VerificationError) as refusal:
        appraise_ima(replayed, judge(), BOOT, carried=first.carried)
    assert refusal.value.check == "ima.carried-state"


@pytest.mark.parametrize(
    "by",
    [
        judge(ImaRules(AFFIRMED, exclude=("/tmp/*",))),
        judge(ImaRules(AFFIRMED, unknown=Action.WARN)),
        judge(ImaRules(AFFIRMED, keyring=KEYRING)),
        judge(ImaRules(ReferenceRules((Grade.PACKAGE,)))),
        judge(known=references({**FILES, "/new": b"new"})),
        judge(known=references(provenance=SEEN)),
    ],
    ids=["exclude", "unknown", "keyring", "grades", "files", "provenance"],
)
def test_what_other_rules_judged_is_judged_again(by: ImaJudge) -> None:
    kernel = booted()
    refused("ima.carried-judge", appraised(kernel), kernel, by)


def test_judges_of_the_same_rules_and_references_are_one() -> None:
    assert judge().id == judge().id


# --- policy --------------------------------------------------------------------------------------


def policy_with(files: FileRules) -> Policy:
    return Policy(
        "p",
        QuoteRules((SHA256,)),
        BootRules((0,), Requirement.NOT_REQUIRED),
        files,
        SecureKernelRules(()),
        AFFIRMED,
        ResultRules(300, 120),
    )


def test_the_rules_of_a_policy() -> None:
    rules = rules_of(policy_with(FileRules(Requirement.REQUIRED, Action.WARN, Action.INSUFFICIENT)))
    assert (rules.unknown, rules.violation) == (Action.WARN, Action.INSUFFICIENT)
    assert rules.reference is AFFIRMED
    assert rules.keyring == ImaKeyring(())


def test_a_policys_exceptions_are_followed() -> None:
    pem = KEY.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    files = FileRules(
        Requirement.REQUIRED,
        violations_at=(("/var/log/*", Action.WARN),),
        buffers=((".ima", None),),
        exclude=("/run/*",),
        keys=(pem.decode(),),
    )
    kernel = booted("ima-sig")
    kernel.measure("/run/anything", b"new")
    kernel.measure("/opt/tool", b"tool", {"sig": signed(b"tool")})
    kernel.buffer(".ima", b"a key")
    by = judge(rules_of(policy_with(files)))
    assert verdict_of(appraised(kernel, by).judgements) is Tier.AFFIRMING
    kernel.violation("/var/log/wtmp")
    assert verdict_of(appraised(kernel, by).judgements) is Tier.WARNING
    kernel.violation("/usr/bin/sh")
    assert verdict_of(appraised(kernel, by).judgements) is Tier.CONTRAINDICATED


def test_a_policys_key_that_is_none_is_named() -> None:
    files = FileRules(Requirement.REQUIRED, keys=("no key",))
    with pytest.raises(FormatError, match="neither a certificate nor a public key"):
        rules_of(policy_with(files))


def test_findings_say_what_quirk_fired() -> None:
    kernel = SimulatedIma(BOOT, padded=[SHA256])
    kernel.boot_aggregate(range(8))
    kernel.measure("/usr/bin/sh", b"sh")
    replay, aggregate, _ = appraised(kernel).judgements
    assert replay.finding.details["quirks"] == ["ima.padded-sha1"]
    assert aggregate.finding.details["quirks"] == ["ima.boot-aggregate-pcrs-0-7"]
    assert isinstance(replay.finding, Finding)
