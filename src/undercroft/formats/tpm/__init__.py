"""TPM 2.0 structures (Library Specification, Part 2, rev. 1.59): bytes to values and back.

``parse_*`` takes exactly one structure and raises FormatError; every value's ``encode()`` gives
back the bytes that it was parsed from.  Nothing here verifies a signature or a digest.

The values are frozen msgspec structs, not dataclasses: a quote is a dozen of them, and they are
made nine times as fast (``msgspec.structs.replace`` makes a changed copy).
"""

from undercroft.formats.tpm.attest import (
    Attest,
    Attested,
    CertifyInfo,
    ClockInfo,
    CommandAuditInfo,
    CreationInfo,
    NvCertifyInfo,
    NvDigestCertifyInfo,
    QuoteInfo,
    SessionAuditInfo,
    TimeAttestInfo,
    parse_attest,
)
from undercroft.formats.tpm.constants import (
    TPM_GENERATED_VALUE,
    ObjectAttributes,
    TpmAlg,
    TpmEccCurve,
    TpmRh,
    TpmSt,
)
from undercroft.formats.tpm.creation import (
    CreationData,
    parse_creation_data,
    parse_creation_data_2b,
)
from undercroft.formats.tpm.credential import (
    CredentialBlob,
    EccPoint,
    EncryptedSecret,
    IdObject,
    parse_credential,
    parse_ecc_point,
    parse_encrypted_secret,
    parse_id_object,
    parse_tools_credential,
)
from undercroft.formats.tpm.legacy import (
    PcrComposite,
    PubKey12,
    QuoteInfo2,
    QuoteInfo12,
    UnverifiedQuote12,
    VersionInfo12,
    parse_pcr_composite,
    parse_pubkey12,
    parse_quote12,
    parse_quote_info12,
)
from undercroft.formats.tpm.nv import NvPublic, parse_nv_public, parse_nv_public_2b
from undercroft.formats.tpm.pcr_values import (
    DigestList,
    PcrRead,
    banks_of,
    parse_digest_list,
    parse_pcr_read,
)
from undercroft.formats.tpm.public import (
    EccPublic,
    KeyedHashPublic,
    Public,
    RsaPublic,
    Scheme,
    SymCipherPublic,
    SymmetricDefinition,
    parse_public,
    parse_public_2b,
)
from undercroft.formats.tpm.quote import (
    UnverifiedQuote,
    UnverifiedStatement,
    parse_quote,
    parse_statement,
)
from undercroft.formats.tpm.selection import (
    PcrSelection,
    PcrSelectionList,
    parse_selection_list,
)
from undercroft.formats.tpm.signature import (
    EccSignature,
    RsaSignature,
    Signature,
    parse_signature,
)

__all__ = [
    "TPM_GENERATED_VALUE",
    "Attest",
    "Attested",
    "CertifyInfo",
    "ClockInfo",
    "CommandAuditInfo",
    "CreationData",
    "CreationInfo",
    "CredentialBlob",
    "DigestList",
    "EccPoint",
    "EccPublic",
    "EccSignature",
    "EncryptedSecret",
    "IdObject",
    "KeyedHashPublic",
    "NvCertifyInfo",
    "NvDigestCertifyInfo",
    "NvPublic",
    "ObjectAttributes",
    "PcrComposite",
    "PcrRead",
    "PcrSelection",
    "PcrSelectionList",
    "PubKey12",
    "Public",
    "QuoteInfo",
    "QuoteInfo2",
    "QuoteInfo12",
    "RsaPublic",
    "RsaSignature",
    "Scheme",
    "SessionAuditInfo",
    "Signature",
    "SymCipherPublic",
    "SymmetricDefinition",
    "TimeAttestInfo",
    "TpmAlg",
    "TpmEccCurve",
    "TpmRh",
    "TpmSt",
    "UnverifiedQuote",
    "UnverifiedQuote12",
    "UnverifiedStatement",
    "VersionInfo12",
    "banks_of",
    "parse_attest",
    "parse_creation_data",
    "parse_creation_data_2b",
    "parse_credential",
    "parse_digest_list",
    "parse_ecc_point",
    "parse_encrypted_secret",
    "parse_id_object",
    "parse_nv_public",
    "parse_nv_public_2b",
    "parse_pcr_composite",
    "parse_pcr_read",
    "parse_pubkey12",
    "parse_public",
    "parse_public_2b",
    "parse_quote",
    "parse_quote12",
    "parse_quote_info12",
    "parse_selection_list",
    "parse_signature",
    "parse_statement",
    "parse_tools_credential",
]
