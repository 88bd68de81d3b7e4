from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.base import HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.ima import FileDigest, ImaList, LinuxHash, parse_binary
from undercroft.testing.ima import SimulatedIma, boot_pcrs
from undercroft.verify.ima import CHECKS, ReplayedIma, replay_ima
from undercroft.verify.ima_boot import verify_boot_aggregate
from undercroft.verify.ima_state import ExtendRule, parse_state
from undercroft.verify.ima_walk import check_template_hashes, replay_pcrs

SHA1, SHA256, SHA384 = HashAlgorithm.SHA1, HashAlgorithm.SHA256, HashAlgorithm.SHA384
BANKS = [SHA1, SHA256, SHA384, HashAlgorithm.SHA512, HashAlgorithm.SHA3_256]


def booted(*, violations: bool = True, **options: object) -> SimulatedIma:
    kernel = SimulatedIma(boot_pcrs(*BANKS), **options)  # type: ignore[arg-type]
    kernel.boot_aggregate()
    for name in ("/init", "/usr/bin/sh", "/usr/lib/libc.so.6"):
        kernel.measure(name, name.encode())
    if violations:
        kernel.violation("/var/log/wtmp")
        kernel.violation("/var/log/wtmp")
    kernel.measure("/usr/bin/true", b"true")
    return kernel


def replayed(kernel: SimulatedIma, bank: HashAlgorithm = SHA256) -> ReplayedIma:
    return replay_ima(parse_binary(kernel.binary), kernel.bank(bank), reset_count=7)


def refused(check: str, measurements: ImaList, quoted: PcrBank) -> VerificationError:
    with pytest.raises(VerificationError) as refusal:
        replay_ima(measurements, quoted, reset_count=7)
    assert refusal.value.check == check
    return refusal.value


@pytest.mark.parametrize(
    "template", ["ima", "ima-ng", "ima-sig", "ima-ngv2", "evm-sig", "d-ng|n-ng"]
)
@pytest.mark.parametrize("bank", BANKS, ids=str)
def test_every_bank_replays(bank: HashAlgorithm, template: str) -> None:
    kernel = booted(template=template)
    result = replayed(kernel, bank)
    assert (result.vouched, result.pending, result.first) == (7, 0, 0)
    assert result.algorithm is bank
    assert result.rule is ExtendRule.TEMPLATE_HASH
    assert result.quirks == ()
    assert result.violations == (4, 5)
    assert result.state.values == ((10, kernel.bank(bank).values[10]),)
    assert result.state.offset == len(kernel.binary)
    assert result.boot_aggregate.value == result.measurements[0].digest.value  # type: ignore[union-attr]


@pytest.mark.parametrize("violations", [False, True])
def test_padded_sha1_of_old_kernels_is_a_quirk(violations: bool) -> None:
    kernel = booted(padded=[SHA256], violations=violations)
    result = replayed(kernel)
    assert result.rule is ExtendRule.PADDED_SHA1
    assert result.quirks == ("ima.padded-sha1",)
    assert replayed(kernel, SHA1).quirks == ()


def test_padded_sha1_with_whole_violations() -> None:
    kernel = booted(padded=[SHA384], violations=False)
    bank = kernel.bank(SHA384)
    kernel.violation("/var/log/wtmp")
    whole = replace(bank.extended(10, b"\xff" * 48))
    result = replay_ima(parse_binary(kernel.binary), whole, reset_count=7)
    assert result.rule is ExtendRule.PADDED_SHA1_FULL_VIOLATION
    assert result.violations == (5,)


def test_entries_after_the_quote_are_pending() -> None:
    kernel = booted()
    quoted = kernel.bank(SHA256)
    size = len(kernel.binary)
    kernel.measure("/usr/bin/late", b"late")
    kernel.violation("/usr/bin/late")
    result = replay_ima(parse_binary(kernel.binary), quoted, reset_count=7)
    assert (result.vouched, result.pending) == (7, 2)
    assert result.state.offset == size
    assert result.violations == (4, 5)


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("bank", [SHA1, SHA256], ids=str)
def test_each_prefix_is_found(bank: HashAlgorithm, count: int) -> None:
    measurements = parse_binary(booted().binary)
    value = bytes(bank.size)
    for entry in list(measurements)[:count]:
        digest = b"\xff" * bank.size if entry.is_violation else bank.hash(entry.template_data)
        value = bank.hash(value, digest)
    quoted = PcrBank(bank, {10: value})
    assert replay_ima(measurements, quoted, reset_count=7).vouched == count


def test_a_shorter_list_is_refused() -> None:
    kernel = booted()
    size = len(kernel.binary)
    kernel.measure("/usr/bin/hidden", b"evil")
    error = refused("ima.pcr", parse_binary(kernel.binary[:size]), kernel.bank(SHA256))
    assert error.expected == f"PCR 10 {kernel.bank(SHA256).values[10].hex()}"
    assert error.got.startswith("PCR 10 ")
    assert error.got != error.expected


@pytest.mark.parametrize("bank", [SHA1, SHA256], ids=str)
def test_a_changed_entry_is_refused(bank: HashAlgorithm) -> None:
    kernel = booted()
    measurements = parse_binary(kernel.binary)
    data = list(measurements.template_data)
    data[2] = data[2].replace(b"/usr/bin/sh", b"/usr/bin/sx")
    hashes = list(measurements.claimed_template_hashes)
    hashes[2] = hashlib.sha1(data[2]).digest()
    changed = replace(
        measurements, template_data=tuple(data), claimed_template_hashes=tuple(hashes)
    )
    refused("ima.pcr", changed, kernel.bank(bank))


def test_a_wrong_template_hash_is_refused_in_its_own_bank_only() -> None:
    kernel = booted()
    measurements = parse_binary(kernel.binary)
    hashes = list(measurements.claimed_template_hashes)
    hashes[6] = b"\x55" * 20
    changed = replace(measurements, claimed_template_hashes=tuple(hashes))
    error = refused("ima.template-hash", changed, kernel.bank(SHA1))
    assert error.got == "55" * 20
    assert "entry 6" in error.what
    assert replay_ima(changed, kernel.bank(SHA256), reset_count=7).vouched == 7
    assert check_template_hashes(changed) == (6,)
    assert check_template_hashes(measurements) == ()


@pytest.mark.parametrize("pcr", [10, 11])
def test_a_list_of_a_banks_own_hashes_that_are_padded_sha1(pcr: int) -> None:
    kernel = booted(padded=[SHA384])
    kernel.measure("/last", b"last", pcr=pcr)
    sha1 = parse_binary(kernel.binary)
    hashes = tuple(claimed.ljust(48, b"\0") for claimed in sha1.claimed_template_hashes)
    padded = replace(sha1, hash_algorithm=SHA384, claimed_template_hashes=hashes)
    result = replay_ima(padded, kernel.bank(SHA384), reset_count=7)
    assert (result.vouched, result.rule) == (8, ExtendRule.PADDED_SHA1)
    assert check_template_hashes(padded) == ()


def test_an_entry_passed_off_as_a_violation_is_refused() -> None:
    kernel = booted()
    measurements = parse_binary(kernel.binary)
    hashes = list(measurements.claimed_template_hashes)
    hashes[2] = bytes(20)
    changed = replace(measurements, claimed_template_hashes=tuple(hashes))
    refused("ima.pcr", changed, kernel.bank(SHA1))
    refused("ima.pcr", changed, kernel.bank(SHA256))


def test_an_empty_list_is_refused() -> None:
    refused("ima.boot-aggregate-entry", parse_binary(b""), PcrBank(SHA256, {10: bytes(32)}))


def test_a_list_of_which_the_quote_vouches_for_nothing_is_refused() -> None:
    refused("ima.empty", parse_binary(booted().binary), PcrBank(SHA256, {10: bytes(32)}))


@pytest.mark.parametrize("template", ["ima-ng", "n-ng|iuid"])
def test_a_list_that_does_not_start_with_boot_aggregate_is_refused(template: str) -> None:
    kernel = SimulatedIma(boot_pcrs(SHA256), template=template)
    kernel.measure("/init" if template == "ima-ng" else "boot_aggregate", b"init")
    error = refused("ima.boot-aggregate-entry", parse_binary(kernel.binary), kernel.bank(SHA256))
    assert error.expected == "boot_aggregate"


def test_a_quote_without_the_pcr_is_refused() -> None:
    kernel = booted()
    refused("ima.pcr-missing", parse_binary(kernel.binary), kernel.boot[SHA256])


def test_a_hash_that_python_lacks_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = booted()
    monkeypatch.setattr(hashlib, "algorithms_available", frozenset({"sha1"}))
    refused("ima.bank", parse_binary(kernel.binary), kernel.bank(SHA256))


def two_pcrs(padded: bool = False) -> SimulatedIma:
    kernel = SimulatedIma(boot_pcrs(SHA1, SHA256), padded=[SHA256] if padded else [])
    kernel.boot_aggregate()
    kernel.measure("/a", b"a")
    kernel.measure("/b", b"b", pcr=11)
    kernel.violation("/c")
    kernel.measure("/d", b"d", pcr=11)
    return kernel


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("bank", [SHA1, SHA256], ids=str)
def test_a_policy_may_send_entries_to_other_pcrs(bank: HashAlgorithm, padded: bool) -> None:
    kernel = two_pcrs(padded)
    result = replayed(kernel, bank)
    assert (result.vouched, result.violations) == (5, (3,))
    assert [pcr for pcr, _ in result.state.values] == [10, 11]


def test_every_pcr_of_the_list_has_to_be_quoted() -> None:
    kernel = two_pcrs()
    quoted = PcrBank(SHA256, {10: kernel.bank(SHA256).values[10]})
    refused("ima.pcr-missing", parse_binary(kernel.binary), quoted)


def test_moving_the_entries_of_one_pcr_to_the_end_does_not_make_them_pending() -> None:
    kernel = two_pcrs()
    entries = list(parse_binary(kernel.binary))
    order = [0, 1, 3, 2, 4]
    moved = SimulatedIma([])
    for i in order:
        digest = entries[i].digest
        assert digest is not None
        moved.entry(
            entries[i].name,
            digest.value,
            pcr=entries[i].pcr,
            violation=entries[i].is_violation,
        )
    result = replay_ima(parse_binary(moved.binary), kernel.bank(SHA256), reset_count=7)
    assert result.vouched == 5


def test_a_wrong_template_hash_with_two_pcrs() -> None:
    kernel = two_pcrs()
    measurements = parse_binary(kernel.binary)
    hashes = [b"\x55" * 20 if any(h) else h for h in measurements.claimed_template_hashes]
    changed = replace(measurements, claimed_template_hashes=tuple(hashes))
    refused("ima.template-hash", changed, kernel.bank(SHA1))


def test_two_pcrs_of_which_nothing_is_quoted() -> None:
    quoted = PcrBank(SHA256, {10: bytes(32), 11: bytes(32)})
    refused("ima.empty", parse_binary(two_pcrs().binary), quoted)


@pytest.mark.parametrize("rule", [ExtendRule.TEMPLATE_HASH, ExtendRule.PADDED_SHA1])
@pytest.mark.parametrize("bank", [SHA1, SHA256], ids=str)
def test_where_a_list_leads_without_a_quote(bank: HashAlgorithm, rule: ExtendRule) -> None:
    kernel = two_pcrs(padded=rule is ExtendRule.PADDED_SHA1)
    values = replay_pcrs(parse_binary(kernel.binary), bank, rule)
    assert values == {pcr: kernel.bank(bank).values[pcr] for pcr in (10, 11)}


def test_an_empty_list_leads_nowhere() -> None:
    assert replay_pcrs(parse_binary(b""), SHA256) == {}


# --- going on from a state -------------------------------------------------------------------


def test_only_new_entries_are_replayed() -> None:
    kernel = booted()
    state = parse_state(replayed(kernel).state.encode())
    assert state == replayed(kernel).state
    kernel.measure("/usr/bin/new", b"new")
    kernel.violation("/usr/bin/new")
    rest = parse_binary(kernel.binary[state.offset :])
    result = replay_ima(rest, kernel.bank(SHA256), reset_count=7, state=state)
    assert (result.first, result.vouched, result.violations) == (7, 2, (1,))
    whole = replayed(kernel)
    assert result.state == whole.state
    assert result.boot_aggregate == whole.boot_aggregate


def test_no_new_entry_is_fine() -> None:
    kernel = booted()
    state = replayed(kernel).state
    result = replay_ima(parse_binary(b""), kernel.bank(SHA256), reset_count=7, state=state)
    assert (result.vouched, result.first, result.state) == (0, 7, state)


def test_no_new_entry_with_two_pcrs() -> None:
    kernel = two_pcrs()
    state = replayed(kernel).state
    result = replay_ima(parse_binary(b""), kernel.bank(SHA256), reset_count=7, state=state)
    assert result.state == state


def test_the_rule_that_fitted_is_kept() -> None:
    kernel = booted(padded=[SHA256])
    state = replayed(kernel).state
    kernel.measure("/usr/bin/new", b"new")
    rest = parse_binary(kernel.binary[state.offset :])
    result = replay_ima(rest, kernel.bank(SHA256), reset_count=7, state=state)
    assert result.rule is ExtendRule.PADDED_SHA1


def going_on(check: str, state_of: SimulatedIma, bank: PcrBank, reset_count: int) -> None:
    state = replayed(state_of).state
    with pytest.raises(VerificationError) as refusal:
        replay_ima(parse_binary(b""), bank, reset_count=reset_count, state=state)
    assert refusal.value.check == check


def test_a_state_of_another_boot_is_refused() -> None:
    kernel = booted()
    going_on("ima.state-boot", kernel, kernel.bank(SHA256), 8)


def test_a_state_of_another_bank_is_refused() -> None:
    kernel = booted()
    going_on("ima.state-bank", kernel, kernel.bank(SHA1), 7)


def test_a_state_that_the_quote_has_left_behind_needs_the_new_entries() -> None:
    kernel = booted()
    later = booted()
    later.measure("/usr/bin/new", b"new")
    going_on("ima.pcr", kernel, later.bank(SHA256), 7)


@settings(deadline=None)
@given(st.lists(st.booleans(), max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_cutting_a_replay_in_two_changes_nothing(kinds: list[bool], cut: int, after: int) -> None:
    kernel = SimulatedIma(boot_pcrs(SHA256))
    kernel.boot_aggregate()
    middle = kernel.bank(SHA256)
    for index, violation in enumerate(kinds):
        if violation:
            kernel.violation(f"/{index}")
        else:
            kernel.measure(f"/{index}", b"x")
        if index < cut:
            middle = kernel.bank(SHA256)
    first = replay_ima(parse_binary(kernel.binary), middle, reset_count=1)
    assert first.vouched == 1 + min(cut, len(kinds))
    rest = parse_binary(kernel.binary[first.state.offset :])
    second = replay_ima(rest, kernel.bank(SHA256), reset_count=1, state=first.state)
    whole = replay_ima(parse_binary(kernel.binary), kernel.bank(SHA256), reset_count=1)
    assert second.state == whole.state


# --- boot_aggregate --------------------------------------------------------------------------


def aggregate(hash_name: str = "sha256", **options: object) -> FileDigest:
    kernel = SimulatedIma(boot_pcrs(SHA1, SHA256), hash_name=hash_name, **options)  # type: ignore[arg-type]
    kernel.boot_aggregate()
    digest = parse_binary(kernel.binary)[0].digest
    assert digest is not None
    return digest


@pytest.mark.parametrize("template", ["ima", "ima-ng", "ima-ngv2"])
def test_a_sha1_boot_aggregate_covers_pcrs_0_to_7(template: str) -> None:
    verified = verify_boot_aggregate(aggregate("sha1", template=template), boot_pcrs(SHA256, SHA1))
    assert (verified.pcrs, verified.quirks) == (range(8), ())


def test_any_other_boot_aggregate_covers_pcrs_0_to_9() -> None:
    verified = verify_boot_aggregate(aggregate(), boot_pcrs(SHA1, SHA256))
    assert (verified.pcrs, verified.quirks) == (range(10), ())


def test_a_boot_aggregate_of_linux_5_8_covers_pcrs_0_to_7() -> None:
    kernel = SimulatedIma(boot_pcrs(SHA256))
    kernel.boot_aggregate(range(8))
    digest = parse_binary(kernel.binary)[0].digest
    assert digest is not None
    verified = verify_boot_aggregate(digest, boot_pcrs(SHA256, pcrs=range(8)))
    assert (verified.pcrs, verified.quirks) == (range(8), ("ima.boot-aggregate-pcrs-0-7",))


@pytest.mark.parametrize("hash_name", ["sha1", "sha256"])
def test_a_boot_aggregate_of_another_boot_is_refused(hash_name: str) -> None:
    with pytest.raises(VerificationError, match="the list is of another boot") as refusal:
        verify_boot_aggregate(aggregate(hash_name), boot_pcrs(SHA1, SHA256, seed=b"other"))
    assert refusal.value.check == "ima.boot-aggregate"


def test_a_zero_boot_aggregate_says_so() -> None:
    zero = FileDigest("ima", "sha256", LinuxHash.SHA256, bytes(32))
    with pytest.raises(VerificationError, match="the kernel saw no TPM"):
        verify_boot_aggregate(zero, boot_pcrs(SHA256))


UNTOLD = {
    "no-bank": (aggregate(), boot_pcrs(SHA1)),
    "no-banks": (aggregate(), []),
    "no-pcr-7": (aggregate("sha1"), boot_pcrs(SHA1, pcrs=range(7))),
    "no-pcr-9": (aggregate(), boot_pcrs(SHA256, pcrs=range(9))),
    "unknown": (FileDigest("ima", "blake3", None, bytes(32)), boot_pcrs(SHA256)),
}


@pytest.mark.parametrize("case", UNTOLD)
def test_a_boot_aggregate_that_nothing_can_be_compared_with(case: str) -> None:
    with pytest.raises(VerificationError) as refusal:
        verify_boot_aggregate(*UNTOLD[case])
    assert refusal.value.check == "ima.boot-aggregate-bank"


def test_the_checks_are_numbered_and_each_is_tested_here() -> None:
    assert [check.number for check in CHECKS] == [f"I{n}" for n in range(1, 11)]
    tests = Path(__file__).read_text()
    assert all(f'"{check.id}"' in tests for check in CHECKS)
