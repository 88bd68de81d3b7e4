"""Who signed: status lines, and real signatures by the keys under tests/vectors/archive."""

from __future__ import annotations

from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.packages.gpgv import parse_status, read_signed

VECTORS = Path(__file__).parents[2] / "vectors" / "archive"
KEYRING = VECTORS / "keyring.gpg"
ONE, TWO = "A" * 40, "B" * 40


def _group(fingerprint: str, *, hash_id: int = 8, extra: str = "", good: str = "GOODSIG") -> str:
    return (
        "[GNUPG:] NEWSIG\n"
        f"{extra}"
        f"[GNUPG:] {good} 1234 Somebody (with parentheses) <a@b>\n"
        f"[GNUPG:] VALIDSIG {'C' * 40} 2026-01-02 1767323045 0 4 0 1 {hash_id} 01 {fingerprint}\n"
    )


def test_every_good_signature_counts_by_its_primary_key() -> None:
    assert parse_status(_group(ONE) + _group(TWO)) == (ONE, TWO)


def test_a_signature_by_a_key_that_we_do_not_have_is_passed_over() -> None:
    unknown = "[GNUPG:] NEWSIG\n[GNUPG:] ERRSIG 99 1 8 01 17 9\n[GNUPG:] NO_PUBKEY 99\n"
    assert parse_status(unknown + _group(ONE)) == (ONE,)
    assert parse_status(unknown) == ()


def test_one_bad_signature_spoils_the_file() -> None:
    with pytest.raises(VerificationError) as caught:
        parse_status(_group(ONE) + "[GNUPG:] NEWSIG\n[GNUPG:] BADSIG 99 Mallory\n")
    assert caught.value.check == "archive.signature"


@pytest.mark.parametrize("word", ["EXPSIG", "EXPKEYSIG", "REVKEYSIG"])
def test_expired_and_revoked_do_not_count_though_valid(word: str) -> None:
    assert parse_status(_group(ONE, good=word)) == ()
    assert parse_status(_group(ONE, extra=f"[GNUPG:] {word} 1234\n")) == ()


@pytest.mark.parametrize("hash_id", [1, 2, 3])
def test_a_weak_hash_does_not_count(hash_id: int) -> None:
    assert parse_status(_group(ONE, hash_id=hash_id)) == ()


@pytest.mark.parametrize("text", ["", "\n\n", "[GNUPG:] NODATA 1\n", "[GNUPG:] GOODSIG 1 x\n"])
def test_nothing_good_gives_nobody(text: str) -> None:
    assert parse_status(text) == ()


@pytest.mark.parametrize(
    "line",
    ["VALIDSIG A", f"VALIDSIG {ONE} d t 0 4 0 1 x 01 {ONE}", f"VALIDSIG {ONE} d t 0 4 0 1 8 01 zz"],
)
def test_another_shape_is_refused(line: str) -> None:
    with pytest.raises(FormatError):
        parse_status(f"[GNUPG:] NEWSIG\n[GNUPG:] GOODSIG 1 x\n[GNUPG:] {line}\n")


@pytest.mark.parametrize("name", ["good.InRelease", "text-outside.InRelease"])
def test_the_signed_text_and_nothing_else_is_read(name: str) -> None:
    signed = read_signed(VECTORS / name, KEYRING)
    assert signed.content == (VECTORS / "Release").read_bytes()
    assert len(signed.signers) == 1


def test_a_detached_signature() -> None:
    signed = read_signed(VECTORS / "Release", KEYRING, detached=VECTORS / "good.Release.gpg")
    assert signed.content == (VECTORS / "Release").read_bytes()
    assert signed.signers == read_signed(VECTORS / "good.InRelease", KEYRING).signers


@pytest.mark.parametrize(
    "case", ["wrong-key", "expired-key", "sha1", "tampered", "unsigned", "truncated"]
)
def test_no_accepted_signature(case: str) -> None:
    with pytest.raises(VerificationError) as caught:
        read_signed(VECTORS / f"{case}.InRelease", KEYRING)
    assert caught.value.check == "archive.signature"


def test_a_detached_signature_of_another_text(tmp_path: Path) -> None:
    other = tmp_path / "Release"
    other.write_bytes((VECTORS / "Release").read_bytes() + b"X: y\n")
    with pytest.raises(VerificationError) as caught:
        read_signed(other, KEYRING, detached=VECTORS / "good.Release.gpg")
    assert caught.value.check == "archive.signature"


def test_no_keyring_is_our_machine_s_fault(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="keyring"):
        read_signed(VECTORS / "good.InRelease", tmp_path / "none.gpg")


def test_no_gpgv_is_our_machine_s_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(EnvironmentFault, match="gpgv"):
        read_signed(VECTORS / "good.InRelease", KEYRING)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    huge = tmp_path / "InRelease"
    with huge.open("wb") as stream:
        stream.truncate((16 << 20) + 1)
    with pytest.raises(FormatError, match="too large"):
        read_signed(huge, KEYRING)
