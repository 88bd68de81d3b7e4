"""What each parser refuses, and where it says the fault is."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from msgspec.structs import replace

from undercroft.base import FormatError, HashAlgorithm, PcrBank
from undercroft.formats import tpm
from undercroft.formats.tpm import (
    CredentialBlob,
    DigestList,
    EccPublic,
    EncryptedSecret,
    IdObject,
    KeyedHashPublic,
    NvPublic,
    ObjectAttributes,
    PcrComposite,
    PcrRead,
    PcrSelection,
    PcrSelectionList,
    Public,
    Scheme,
    SymCipherPublic,
    SymmetricDefinition,
    TimeAttestInfo,
    TpmAlg,
    TpmEccCurve,
    TpmRh,
    TpmSt,
    banks_of,
)
from undercroft.testing import AkKind, SimulatedAttester
from undercroft.testing.attester12 import SimulatedAttester12

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
TPM = SimulatedAttester()
QUOTE = TPM.quote(bytes(16), {SHA256: [0]})
ATTEST = QUOTE.attest
PUBLIC = TPM.public.encode()
SAFE_AT = 6 + 2 + 34 + 2 + 16 + 16  # head, qualifiedSigner, extraData, clock and the counters


def put(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


def u16(value: int) -> bytes:
    return value.to_bytes(2, "big")


def key(area: object) -> bytes:
    return replace(TPM.public, key=area).encode()


def ecc(**changes: object) -> bytes:
    assert isinstance(TPM.public.key, EccPublic)
    return key(replace(TPM.public.key, **changes))


XOR = key(KeyedHashPublic(Scheme(TpmAlg.XOR, SHA256, kdf=TpmAlg.MGF1), bytes(32)))
SYM = key(SymCipherPublic(SymmetricDefinition(TpmAlg.AES, 128, TpmAlg.CFB), bytes(32)))
TIME = TPM.attest(TimeAttestInfo(1, TPM.clock_info, 2), b"x").encode()
ECC_SYMMETRIC = ecc(symmetric=SymmetricDefinition(TpmAlg.AES, 128, TpmAlg.CFB))
BLOB = CredentialBlob(IdObject(bytes(32), bytes(34)), EncryptedSecret(bytes(256)))
COMPOSITE = PcrComposite.of(PcrBank(SHA1, {0: bytes(20), 7: bytes(20)})).encode()
QUOTE12 = SimulatedAttester12().quote(bytes(20), [0]).info_bytes
QUOTE2 = SimulatedAttester12().quote2(bytes(20), [0]).info_bytes
PUBKEY12 = SimulatedAttester12().public.encode()


@pytest.mark.parametrize(
    ("parse", "data", "offset", "reason"),
    [
        (tpm.parse_attest, ATTEST[:5], 0, "magic and type is cut short"),
        (tpm.parse_attest, put(ATTEST, 4, u16(0x8013)), 4, "not an attestation structure"),
        (tpm.parse_attest, put(ATTEST, 6, u16(67)), 6, "qualifiedSigner is too large"),
        (tpm.parse_attest, put(ATTEST, SAFE_AT, b"\2"), SAFE_AT, "neither YES nor NO"),
        (tpm.parse_attest, put(TIME, len(TIME) - 9, b"\7"), len(TIME) - 9, "neither YES nor NO"),
        (tpm.parse_attest, put(ATTEST, SAFE_AT + 9, b"\xff" * 4), SAFE_AT + 9, "too many PCR"),
        (tpm.parse_attest, put(ATTEST, SAFE_AT + 15, b"\x21"), SAFE_AT + 15, "PCR bitmap is too"),
        (tpm.parse_attest, ATTEST + b"\0", len(ATTEST), "left over"),
        (tpm.parse_signature, u16(TpmAlg.HMAC) + QUOTE.signature[2:], 0, "sigAlg is not one"),
        (tpm.parse_signature, u16(TpmAlg.NULL), 0, "sigAlg is not one"),
        (tpm.parse_signature, put(QUOTE.signature, 2, u16(0x7777)), 2, "hash is not one"),
        (tpm.parse_signature, put(QUOTE.signature, 4, u16(81)), 4, "signatureR is too large"),
        (tpm.parse_public, put(PUBLIC, 0, u16(TpmAlg.AES)), 0, "type is not one"),
        (tpm.parse_public, put(PUBLIC, 2, u16(TpmAlg.AES)), 2, "nameAlg is not one"),
        (tpm.parse_public, put(PUBLIC, 7, b"\1"), 4, "reserved object attributes"),
        (tpm.parse_public, put(PUBLIC, 10, u16(TpmAlg.RSA)), 10, "symmetric is not one"),
        (tpm.parse_public, put(PUBLIC, 12, u16(TpmAlg.RSASSA)), 12, "scheme is not one"),
        (tpm.parse_public, put(PUBLIC, 16, u16(0x99)), 16, "curveID is not one"),
        (tpm.parse_public, put(ECC_SYMMETRIC, 14, u16(TpmAlg.AES)), 14, "mode is not one"),
        (tpm.parse_public, put(XOR, 14, u16(TpmAlg.AES)), 14, "kdf is not one"),
        (tpm.parse_public, put(SYM, 10, u16(TpmAlg.NULL)), 10, "sym is not one"),
        (tpm.parse_public_2b, u16(2) + u16(TpmAlg.AES), 2, "type is not one"),
        (tpm.parse_public_2b, u16(len(PUBLIC)) + PUBLIC + b"\0", 2 + len(PUBLIC), "left over"),
        (tpm.parse_digest_list, b"\0\0\0\x09", 0, "too many digests"),
        (tpm.parse_digest_list, b"\0\0\0\1\0\x41" + bytes(65), 4, "a digest is too large"),
        (tpm.parse_selection_list, b"\xff\xff\xff\xff", 0, "too many PCR banks"),
        (tpm.parse_id_object, u16(104) + u16(32) + bytes(102), 36, "encIdentity is too large"),
        (tpm.parse_id_object, u16(2) + u16(32), 4, "integrityHMAC is longer"),
        (tpm.parse_tools_credential, bytes(8), 0, "the magic is wrong"),
        (
            tpm.parse_tools_credential,
            put(BLOB.encode_tools_file(), 4, b"\0\0\0\2"),
            4,
            "the version is wrong",
        ),
        (
            tpm.parse_pcr_composite,
            put(COMPOSITE, 5, b"\0\0\0\x14"),
            5,
            "valueSize is not the PCRs'",
        ),
        (tpm.parse_pcr_composite, COMPOSITE[:-1], len(COMPOSITE) - 20, "pcrValue is longer"),
        (tpm.parse_quote_info12, put(QUOTE12, 0, b"\1\2"), 0, "version is wrong"),
        (tpm.parse_quote_info12, put(QUOTE12, 4, b"QUOX"), 4, "fixed is wrong"),
        (tpm.parse_quote_info12, put(QUOTE2, 2, b"QUOT"), 2, "fixed is wrong"),
        (tpm.parse_quote_info12, QUOTE2 + b"\0\x31", len(QUOTE2), "tag of TPM_CAP_VERSION_INFO"),
        (tpm.parse_pubkey12, put(PUBKEY12, 0, b"\0\0\0\2"), 0, "algorithmID is wrong"),
        (tpm.parse_pubkey12, put(PUBKEY12, 20, b"\0\0\0\1"), 24, "exponent is longer"),
    ],
)
def test_a_fault_is_named_and_placed(
    parse: Callable[[bytes], object], data: bytes, offset: int, reason: str
) -> None:
    with pytest.raises(FormatError, match=reason) as caught:
        parse(data)
    assert caught.value.offset == offset


def test_a_duplicated_bank_stays_visible() -> None:
    selection = PcrSelection(SHA256.alg_id, b"\1\0\0")
    parsed = tpm.parse_selection_list(PcrSelectionList((selection, selection)).encode())
    assert parsed.selections == (selection, selection)
    assert str(parsed) == "sha256:0+sha256:0"


def test_selections_print_as_people_write_them() -> None:
    assert str(PcrSelectionList.of({SHA256: [7, 0], SHA1: []})) == "sha256:0,7+sha1:none"
    assert str(PcrSelectionList(())) == "nothing"
    assert str(PcrSelection(0x99, b"\0\1")) == "0x0099:8"


@pytest.mark.parametrize("index", [-1, 24])
def test_a_selection_is_of_pcrs_that_there_are(index: int) -> None:
    with pytest.raises(ValueError, match="not one of"):
        PcrSelectionList.of({SHA256: [index]})


def test_values_know_their_type() -> None:
    attest = tpm.parse_attest(ATTEST)
    assert (attest.type, str(attest.type)) == (TpmSt.ATTEST_QUOTE, "TPM_ST_ATTEST_QUOTE")
    assert attest.tpm_generated
    assert not replace(attest, magic=1).tpm_generated
    assert (TPM.public.type, str(TPM.public.type)) == (TpmAlg.ECC, "ecc")
    assert str(TpmEccCurve.NIST_P256) == "NIST_P256"
    assert str(AkKind.RSAPSS.scheme) == "rsapss-sha256"
    assert str(Scheme(TpmAlg.RSAES)) == "rsaes"
    assert (ObjectAttributes.SIGN | ObjectAttributes.FIXED_TPM).labels == ("fixedTPM", "sign")


def test_an_object_without_name_algorithm_has_no_name() -> None:
    nameless = replace(TPM.public, name_alg=None)
    assert (nameless.name, nameless.qualified_name(TpmRh.OWNER.handle_name)) == (b"", b"")
    assert tpm.parse_public(nameless.encode()) == nameless


def test_an_nv_index_has_a_name() -> None:
    nv = NvPublic(0x01500016, SHA256, 0x20072, b"", 8)
    assert nv.name == b"\0\x0b" + SHA256.hash(nv.encode())
    assert tpm.parse_nv_public_2b(u16(len(nv.encode())) + nv.encode()) == nv


# --- PCR values --------------------------------------------------------------------------------


def read(counter: int, banks: dict[HashAlgorithm, list[int]], *digests: bytes) -> PcrRead:
    return PcrRead(counter, PcrSelectionList.of(banks), DigestList(digests))


def test_several_reads_join_into_banks() -> None:
    reads = [
        read(5, {SHA1: [0, 1]}, b"\1" * 20, b"\2" * 20),
        read(5, {SHA1: [2], SHA256: [0]}, b"\3" * 20, b"\4" * 32),
    ]
    assert banks_of(reads) == (
        PcrBank(SHA1, {0: b"\1" * 20, 1: b"\2" * 20, 2: b"\3" * 20}),
        PcrBank(SHA256, {0: b"\4" * 32}),
    )
    assert banks_of([]) == ()


@pytest.mark.parametrize(
    ("reads", "reason"),
    [
        ([read(5, {SHA1: []}), read(6, {SHA1: []})], "changed between"),
        ([read(5, {SHA1: [0, 1]}, bytes(20))], "as many digests"),
        ([read(5, {SHA1: [0]}, bytes(32))], "twice or has the wrong size"),
        ([read(5, {SHA1: [0]}, bytes(20)), read(5, {SHA1: [0]}, bytes(20))], "twice"),
        (
            [PcrRead(5, PcrSelectionList((PcrSelection(0x99, b"\1"),)), DigestList((b"",)))],
            "no PCR of a bank",
        ),
        (
            [
                PcrRead(
                    5,
                    PcrSelectionList((PcrSelection(SHA1.alg_id, b"\0\0\0\1"),)),
                    DigestList((bytes(20),)),
                )
            ],
            "no PCR of a bank",
        ),
    ],
)
def test_reads_that_do_not_belong_together_are_refused(reads: list[PcrRead], reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        banks_of(reads)


def test_a_public_area_is_what_its_name_is_the_hash_of() -> None:
    public: Public = TPM.public
    assert public.name == b"\0\x0b" + SHA256.hash(public.encode())
