"""Every TPM structure: what is written is read back, and any other bytes are one error.

One table of strategies and parsers; three properties hold for each row.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, HashAlgorithm, PcrBank
from undercroft.formats import tpm
from undercroft.formats.tpm import ObjectAttributes, TpmAlg, TpmEccCurve
from undercroft.formats.tpm.legacy import SS_RSASSAPKCS1V15_SHA1

hashes = st.sampled_from(HashAlgorithm)
u8 = st.integers(0, 2**8 - 1)
u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
digest = st.binary(max_size=64)
name = st.binary(max_size=66)
parameter = st.binary(max_size=80)
sha1 = st.binary(min_size=20, max_size=20)
four = st.binary(min_size=4, max_size=4)

selections = st.builds(
    tpm.PcrSelectionList,
    st.lists(st.builds(tpm.PcrSelection, u16, st.binary(max_size=32)), max_size=5).map(tuple),
)
clocks = st.builds(tpm.ClockInfo, u64, u32, u32, st.booleans())
attested = st.one_of(
    st.builds(tpm.QuoteInfo, selections, digest),
    st.builds(tpm.CertifyInfo, name, name),
    st.builds(tpm.CreationInfo, name, digest),
    st.builds(tpm.NvCertifyInfo, name, u16, st.binary(max_size=100)),
    st.builds(tpm.NvDigestCertifyInfo, name, digest),
    st.builds(tpm.TimeAttestInfo, u64, clocks, u64),
    st.builds(tpm.CommandAuditInfo, u64, hashes, digest, digest),
    st.builds(tpm.SessionAuditInfo, st.booleans(), digest),
)
attests = st.builds(tpm.Attest, u32, name, name, clocks, u64, attested)
signatures = st.one_of(
    st.builds(
        tpm.RsaSignature,
        st.sampled_from([TpmAlg.RSASSA, TpmAlg.RSAPSS]),
        hashes,
        st.binary(max_size=512),
    ),
    st.builds(
        tpm.EccSignature,
        st.sampled_from([TpmAlg.ECDSA, TpmAlg.ECDAA, TpmAlg.SM2, TpmAlg.ECSCHNORR]),
        hashes,
        parameter,
        parameter,
    ),
)
symmetric = st.builds(
    tpm.SymmetricDefinition,
    st.sampled_from([TpmAlg.AES, TpmAlg.SM4, TpmAlg.CAMELLIA, TpmAlg.TDES]),
    u16,
    st.sampled_from([TpmAlg.CFB, TpmAlg.CTR, TpmAlg.NULL]),
)
kdfs = [TpmAlg.MGF1, TpmAlg.KDF1_SP800_56A, TpmAlg.KDF2, TpmAlg.KDF1_SP800_108]


def hashed(*algorithms: TpmAlg) -> st.SearchStrategy[tpm.Scheme]:
    return st.builds(tpm.Scheme, st.sampled_from(algorithms), hashes)


keys = st.one_of(
    st.builds(
        tpm.RsaPublic,
        st.none() | symmetric,
        st.none()
        | st.just(tpm.Scheme(TpmAlg.RSAES))
        | hashed(TpmAlg.RSASSA, TpmAlg.RSAPSS, TpmAlg.OAEP),
        u16,
        u32,
        st.binary(max_size=512),
    ),
    st.builds(
        tpm.EccPublic,
        st.none() | symmetric,
        st.none()
        | st.builds(tpm.Scheme, st.just(TpmAlg.ECDAA), hashes, u16)
        | hashed(TpmAlg.ECDSA, TpmAlg.SM2, TpmAlg.ECSCHNORR, TpmAlg.ECDH, TpmAlg.ECMQV),
        st.sampled_from(TpmEccCurve),
        st.none() | hashed(*kdfs),
        parameter,
        parameter,
    ),
    st.builds(
        tpm.KeyedHashPublic,
        st.none()
        | hashed(TpmAlg.HMAC)
        | st.builds(
            tpm.Scheme,
            st.just(TpmAlg.XOR),
            hashes,
            kdf=st.sampled_from([*kdfs, TpmAlg.NULL]),
        ),
        digest,
    ),
    st.builds(tpm.SymCipherPublic, symmetric, digest),
)
attributes = st.sampled_from(ObjectAttributes) | st.just(ObjectAttributes(0))  # combinations too
publics = st.builds(tpm.Public, st.none() | hashes, attributes, digest, keys)
digest_lists = st.builds(tpm.DigestList, st.lists(digest, max_size=8).map(tuple))
id_objects = st.builds(tpm.IdObject, digest, st.binary(max_size=66))
secrets = st.builds(tpm.EncryptedSecret, st.binary(max_size=512))
credentials = st.builds(tpm.CredentialBlob, id_objects, secrets)
composites = st.dictionaries(st.integers(0, 23), sha1).map(
    lambda values: tpm.PcrComposite.of(PcrBank(HashAlgorithm.SHA1, values))
)
versions = st.builds(tpm.VersionInfo12, four, u16, u8, four, st.binary(max_size=30))
quotes12 = st.one_of(
    st.builds(tpm.QuoteInfo12, sha1, sha1),
    st.builds(tpm.QuoteInfo2, sha1, st.binary(max_size=3), u8, sha1, st.none() | versions),
)
pubkeys12 = st.builds(
    tpm.PubKey12,
    u16,
    st.just(SS_RSASSAPKCS1V15_SHA1),
    u32,
    u32,
    st.binary(max_size=8),
    st.binary(max_size=256),
)


@dataclass(frozen=True)
class Row:
    """A structure: how to make one, how to write it and how to read it."""

    values: st.SearchStrategy[Any]
    parse: Callable[[bytes], Any]
    encode: Callable[[Any], bytes] = lambda value: bytes(value.encode())


ROWS = {
    "TPMS_ATTEST": Row(attests, tpm.parse_attest),
    "TPMT_SIGNATURE": Row(signatures, tpm.parse_signature),
    "TPMT_PUBLIC": Row(publics, tpm.parse_public),
    "TPM2B_PUBLIC": Row(publics, tpm.parse_public_2b, lambda value: bytes(value.encode_2b())),
    "TPML_PCR_SELECTION": Row(selections, tpm.parse_selection_list),
    "TPML_DIGEST": Row(digest_lists, tpm.parse_digest_list),
    "TPM2_PCR_Read": Row(st.builds(tpm.PcrRead, u32, selections, digest_lists), tpm.parse_pcr_read),
    "TPMS_CREATION_DATA": Row(
        st.builds(tpm.CreationData, selections, digest, u8, st.none() | hashes, name, name, name),
        tpm.parse_creation_data,
    ),
    "TPMS_NV_PUBLIC": Row(
        st.builds(tpm.NvPublic, u32, hashes, u32, digest, u16), tpm.parse_nv_public
    ),
    "TPM2B_ID_OBJECT": Row(id_objects, tpm.parse_id_object),
    "TPM2B_ENCRYPTED_SECRET": Row(secrets, tpm.parse_encrypted_secret),
    "TPMS_ECC_POINT": Row(st.builds(tpm.EccPoint, parameter, parameter), tpm.parse_ecc_point),
    "TPM2_ActivateCredential": Row(credentials, tpm.parse_credential),
    "tpm2-tools credential": Row(
        credentials, tpm.parse_tools_credential, lambda value: bytes(value.encode_tools_file())
    ),
    "TPM_QUOTE_INFO": Row(quotes12, tpm.parse_quote_info12),
    "TPM_PCR_COMPOSITE": Row(composites, tpm.parse_pcr_composite),
    "TPM_PUBKEY": Row(pubkeys12, tpm.parse_pubkey12),
}
every_structure = pytest.mark.parametrize("row", ROWS.values(), ids=ROWS)


@every_structure
@given(st.data())
def test_what_is_written_is_read_back(row: Row, data: st.DataObject) -> None:
    value = data.draw(row.values)
    assert row.parse(row.encode(value)) == value


def outcome(row: Row, data: bytes) -> Any:
    """Parse, and return the declared error instead of raising it; any other escapes."""
    try:
        return row.parse(data)
    except FormatError as error:
        return error


@every_structure
@given(st.data())
def test_any_bytes_are_a_value_that_encodes_to_them_or_one_error(
    row: Row, data: st.DataObject
) -> None:
    """Bytes near a good encoding: some changed, some cut out, some put in."""
    encoded = bytearray(row.encode(data.draw(row.values)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.integers(0, len(encoded)))
        encoded[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    mutated = bytes(encoded)
    result = outcome(row, mutated)
    if isinstance(result, FormatError):
        assert 0 <= result.offset <= len(mutated)
        assert result.format_name
    else:
        assert row.encode(result) == mutated


@every_structure
@given(st.data())
def test_a_cut_or_longer_input_is_refused(row: Row, data: st.DataObject) -> None:
    encoded = row.encode(data.draw(row.values))
    if row.parse is not tpm.parse_quote_info12:  # TPM_Quote2 has an optional tail
        cut = data.draw(st.integers(0, len(encoded) - 1))
        with pytest.raises(FormatError):
            row.parse(encoded[:cut])
    with pytest.raises(FormatError):
        row.parse(encoded + b"\0" * 4)
