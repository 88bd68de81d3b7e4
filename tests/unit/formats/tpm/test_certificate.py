"""Certificates and CRLs in the wrappings that TPMs and people put around them."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError
from undercroft.formats.tpm.certificate import (
    MAX_CERTIFICATE,
    MAX_CRL,
    NV_PADDING,
    QUIRKS,
    STORED_CERT,
    encode_crl,
    parse_certificate,
    parse_crl,
)
from undercroft.testing.endorsement import SimulatedEk
from undercroft.testing.tpm_vendor import SimulatedTpmVendor

VENDOR = SimulatedTpmVendor()
DER = VENDOR.ek_certificate(SimulatedEk("L-2").private.public_key()).der
CRL = encode_crl(VENDOR.intermediate.crl([5]))


def pem(der: bytes, label: str = "CERTIFICATE") -> bytes:
    body = base64.encodebytes(der).decode()
    return f"-----BEGIN {label}-----\n{body}-----END {label}-----\n".encode()


def stored(der: bytes, size: int | None = None) -> bytes:
    length = len(der) + 2 if size is None else size
    return b"\x10\x01\x00" + length.to_bytes(2, "big") + b"\x10\x02" + der


@pytest.mark.parametrize(
    ("data", "quirks"),
    [
        (DER, ()),
        (pem(DER), ()),
        (b"\n" + pem(DER), ()),
        (DER + bytes(100), (NV_PADDING,)),
        (DER + b"\xff" * 100, (NV_PADDING,)),
        (stored(DER), (STORED_CERT,)),
        (stored(DER) + bytes(3), (STORED_CERT,)),
        (stored(DER + bytes(3)), (STORED_CERT, NV_PADDING)),
    ],
)
def test_what_is_around_a_certificate_is_reported(data: bytes, quirks: tuple[str, ...]) -> None:
    certificate = parse_certificate(data)
    assert certificate.encode() == DER
    assert certificate.quirks == quirks
    assert set(quirks) <= set(QUIRKS)
    assert (certificate.subject, certificate.issuer) == ("", "CN=vendor intermediate")


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no DER sequence"),
        (b"\x30", "no DER sequence"),
        (b"\x31\x00", "no DER sequence"),
        (b"\x30\x80", "no DER length"),
        (b"\x30\x85\0\0\0\0\0", "no DER length"),
        (b"\x30\x84\xff\xff\xff\xff", "longer than the input"),
        (b"\x30\x00", "cannot be read"),
        (DER + b"\1", "left over"),
        (DER + b"\0\xff", "left over"),
        (DER[:-1], "longer than the input"),
        (bytes(MAX_CERTIFICATE + 1), "too large"),
        (stored(DER, 1), "the wrapped size is wrong"),
        (stored(DER, len(DER) + 3), "the wrapped size is wrong"),
        (pem(DER) + pem(DER), "not exactly one PEM block"),
        (pem(DER, "X509 CRL"), "not exactly one PEM block"),
        (b"-----BEGIN CERTIFICATE-----\nA\n-----END CERTIFICATE-----\n", "no base64"),
        (CRL, "cannot be read"),
    ],
)
def test_what_is_no_certificate_is_one_error(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_certificate(data)


def test_a_crl_is_der_or_pem() -> None:
    assert parse_crl(CRL) == parse_crl(pem(CRL, "X509 CRL"))
    assert encode_crl(parse_crl(CRL)) == CRL


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (CRL + b"\0", "left over"),
        (DER, "cannot be read"),
        (pem(CRL), "not exactly one PEM block"),
        (bytes(MAX_CRL + 1), "too large"),
    ],
)
def test_what_is_no_crl_is_one_error(data: bytes, reason: str) -> None:
    with pytest.raises(FormatError, match=reason):
        parse_crl(data)


@given(st.data())
def test_a_damaged_certificate_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(DER)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(DER) - 1))] = data.draw(st.integers(0, 255))
    try:
        certificate = parse_certificate(bytes(damaged))
    except FormatError:
        return
    assert certificate.encode() == bytes(damaged)[: len(certificate.der)]


@given(st.data())
def test_a_damaged_crl_is_read_or_refused_and_nothing_else(data: st.DataObject) -> None:
    damaged = bytearray(CRL)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(CRL) - 1))] = data.draw(st.integers(0, 255))
    try:
        crl = parse_crl(bytes(damaged))
    except FormatError:
        return
    assert encode_crl(crl) == bytes(damaged)
