"""TPM statements for people and for JSON: what they say, not whether it is true."""

from __future__ import annotations

from undercroft.base import JsonValue, PcrBank
from undercroft.formats.tpm.attest import (
    Attest,
    CertifyInfo,
    ClockInfo,
    CommandAuditInfo,
    CreationInfo,
    NvCertifyInfo,
    NvDigestCertifyInfo,
    QuoteInfo,
    TimeAttestInfo,
)
from undercroft.formats.tpm.legacy import AnyQuoteInfo12, QuoteInfo2
from undercroft.formats.tpm.public import EccPublic, Public, RsaPublic
from undercroft.formats.tpm.signature import Signature

Fields = dict[str, JsonValue]


def attest_fields(attest: Attest) -> Fields:
    """Return every field of a TPMS_ATTEST by its specification's name; bytes in hexadecimal."""
    return {
        "magic": f"{attest.magic:#010x}",
        "type": str(attest.type),
        "qualifiedSigner": attest.qualified_signer.hex(),
        "extraData": attest.extra_data.hex(),
        "clockInfo": _clock_fields(attest.clock_info),
        "firmwareVersion": f"{attest.firmware_version:#018x}",
        "attested": _attested_fields(attest),
    }


def _clock_fields(clock: ClockInfo) -> Fields:
    return {
        "clock": clock.clock,
        "resetCount": clock.reset_count,
        "restartCount": clock.restart_count,
        "safe": clock.safe,
    }


def _attested_fields(attest: Attest) -> Fields:
    info = attest.attested
    match info:
        case QuoteInfo():
            banks: list[JsonValue] = [
                {"hash": str(bank.algorithm or f"{bank.alg_id:#06x}"), "pcrs": list(bank.indices)}
                for bank in info.pcr_select.selections
            ]
            return {"pcrSelect": banks, "pcrDigest": info.pcr_digest.hex()}
        case CertifyInfo():
            return {"name": info.name.hex(), "qualifiedName": info.qualified_name.hex()}
        case CreationInfo():
            return {
                "objectName": info.object_name.hex(),
                "creationHash": info.creation_hash.hex(),
            }
        case NvCertifyInfo():
            return {
                "indexName": info.index_name.hex(),
                "offset": info.offset,
                "nvContents": info.nv_contents.hex(),
            }
        case NvDigestCertifyInfo():
            return {"indexName": info.index_name.hex(), "nvDigest": info.nv_digest.hex()}
        case TimeAttestInfo():
            return {
                "time": info.time,
                "clockInfo": _clock_fields(info.clock_info),
                "firmwareVersion": f"{info.firmware_version:#018x}",
            }
        case CommandAuditInfo():
            return {
                "auditCounter": info.audit_counter,
                "digestAlg": str(info.digest_alg),
                "auditDigest": info.audit_digest.hex(),
                "commandDigest": info.command_digest.hex(),
            }
    return {
        "exclusiveSession": info.exclusive_session,
        "sessionDigest": info.session_digest.hex(),
    }


def quote12_fields(info: AnyQuoteInfo12) -> Fields:
    """Return the fields of a TPM 1.2 quote by their specification's names."""
    fields: Fields = {
        "type": "TPM_QUOTE_INFO2" if isinstance(info, QuoteInfo2) else "TPM_QUOTE_INFO",
        "externalData": info.external_data.hex(),
        "digestValue": info.digest_value.hex(),
    }
    if isinstance(info, QuoteInfo2):
        fields["pcrSelect"] = info.pcr_select.hex()
        fields["localityAtRelease"] = info.locality_at_release
        if info.version_info is not None:
            fields["versionInfo"] = info.version_info.encode().hex()
    return fields


def signature_fields(signature: Signature) -> Fields:
    """Return what a signature is, without its value."""
    return {"sigAlg": str(signature.scheme), "hash": str(signature.hash_alg)}


def public_fields(public: Public) -> Fields:
    """Return what a key is: its type, size, scheme, attributes and Name."""
    fields: Fields = {
        "type": str(public.type),
        "name": public.name.hex(),
        "objectAttributes": list(public.attributes.labels),
        "authPolicy": public.auth_policy.hex(),
    }
    match public.key:
        case RsaPublic(key_bits=bits, scheme=scheme):
            return {**fields, "keyBits": bits, "scheme": str(scheme or "null")}
        case EccPublic(curve=curve, scheme=scheme):
            return {**fields, "curveID": str(curve), "scheme": str(scheme or "null")}
    return fields


def bank_fields(banks: tuple[PcrBank, ...]) -> Fields:
    """Return PCR values by bank and index."""
    return {
        str(bank.algorithm): {str(i): value.hex() for i, value in bank.values.items()}
        for bank in banks
    }


def lines(fields: Fields, indent: str = "") -> list[str]:
    """Return ``fields`` as aligned lines for a person, nested ones indented."""
    width = max((len(name) for name in fields), default=0)
    out = []
    for name, value in fields.items():
        if isinstance(value, dict):
            out += [f"{indent}{name}", *lines(value, indent + "  ")]
        else:
            out.append(f"{indent}{name:<{width}}  {_text(value)}")
    return out


def _text(value: JsonValue) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, list):
        return "; ".join(map(_text, value)) or "none"
    if isinstance(value, dict):
        return " ".join(f"{name} {_text(inner)}" for name, inner in value.items())
    return str(value) if value != "" else "(empty)"
