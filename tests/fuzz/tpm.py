"""Fuzz targets for the TPM formats.

Only FormatError escapes a parser, and what parses encodes to the input.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from undercroft.base import FormatError
from undercroft.formats import tpm
from undercroft.formats.tpm.certificate import encode_crl, parse_certificate, parse_crl
from undercroft.formats.tpm.fields import encode_2b
from undercroft.testing.fuzzing import Encodes, Suite, Target, exact, fuzz_by_hand, plain


def _sized(parse: Callable[[bytes], Encodes]) -> Target:
    return exact(parse, lambda value: encode_2b(value.encode()))


_PARTS = (
    plain(tpm.parse_credential),
    plain(tpm.parse_digest_list),
    plain(tpm.parse_ecc_point),
    plain(tpm.parse_encrypted_secret),
    plain(tpm.parse_id_object),
    plain(tpm.parse_selection_list),
    _sized(tpm.parse_creation_data_2b),
    _sized(tpm.parse_nv_public_2b),
    _sized(tpm.parse_public_2b),
)


def _parts(data: bytes) -> None:
    """What stands inside other structures, and the same with a size in front."""
    for part in _PARTS:
        part(data)


def _certificate(data: bytes) -> None:
    """A certificate may be wrapped, so only the certificate itself comes back."""
    try:
        certificate = parse_certificate(data)
    except FormatError:
        return
    if parse_certificate(certificate.der).der != certificate.der:
        raise AssertionError("the certificate alone is not itself")


def _crl(data: bytes) -> None:
    try:
        crl = parse_crl(data)
    except FormatError:
        return
    if parse_crl(encode_crl(crl)) != crl:
        raise AssertionError("the CRL alone is not itself")


TARGETS: dict[str, Target] = {
    "attest": plain(tpm.parse_attest),
    "signature": plain(tpm.parse_signature),
    "public": plain(tpm.parse_public),
    "creation": plain(tpm.parse_creation_data),
    "credential": exact(tpm.parse_tools_credential, lambda value: value.encode_tools_file()),
    "parts": _parts,
    "pcr-read": plain(tpm.parse_pcr_read),
    "nv-public": plain(tpm.parse_nv_public),
    "tpm12-quote": plain(tpm.parse_quote_info12),
    "tpm12-composite": plain(tpm.parse_pcr_composite),
    "tpm12-pubkey": plain(tpm.parse_pubkey12),
    "x509-certificate": _certificate,
    "x509-crl": _crl,
}
SUITE = Suite(Path(__file__), TARGETS)

if __name__ == "__main__":
    sys.exit(fuzz_by_hand(__file__, TARGETS))
