"""What a revocation list vouches for, and what it does not."""

from __future__ import annotations

import datetime
from collections.abc import Callable

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, x25519
from cryptography.x509.oid import NameOID

from undercroft.base import VerificationError
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.testing.keys import ecc_key
from undercroft.testing.tpm_vendor import (
    CRL_ADDRESS,
    END,
    NOW,
    START,
    PublicKey,
    SimulatedTpmVendor,
    authority,
    ek_extensions,
    key_usage,
)
from undercroft.verify.checks import Check
from undercroft.verify.checks_crl import Revocation, verify_not_revoked

CHECK = Check("X1", "x.revoked", "says", "source")
VENDOR = SimulatedTpmVendor()
ISSUER = VENDOR.intermediate
KEY = ecc_key("leaf", ec.SECP256R1()).public_key()
LEAF = ISSUER.issue("leaf", KEY, ek_extensions(KEY), serial=77)
PATH = (LEAF, ISSUER.certificate, VENDOR.root.certificate)
UNKNOWN_LEAF = ("CN=leaf", (CRL_ADDRESS,))
UNKNOWN_ISSUER = ("CN=vendor intermediate", ())


def check(
    *crls: x509.CertificateRevocationList,
    path: tuple[TpmCertificate, ...] = PATH,
    now: datetime.datetime = NOW,
) -> Revocation:
    return verify_not_revoked(path, crls, now, CHECK)


def test_without_a_list_nothing_is_known() -> None:
    assert check() == Revocation((), (UNKNOWN_LEAF, UNKNOWN_ISSUER))


def test_a_current_list_vouches_for_what_it_does_not_name() -> None:
    assert check(ISSUER.crl([1, 2]), VENDOR.root.crl()) == Revocation(
        ("CN=leaf", "CN=vendor intermediate"), ()
    )


@pytest.mark.parametrize("reason", [None, x509.ReasonFlags.key_compromise])
def test_a_named_certificate_is_revoked(reason: x509.ReasonFlags | None) -> None:
    with pytest.raises(VerificationError) as caught:
        check(ISSUER.crl([77], reason=reason))
    assert caught.value.check == CHECK.id
    assert (reason or x509.ReasonFlags.unspecified).value in caught.value.got


def test_a_revoked_issuer_ends_the_path() -> None:
    with pytest.raises(VerificationError, match="vendor intermediate"):
        check(VENDOR.root.crl([2]))


def test_removal_from_a_list_is_no_revocation() -> None:
    assert check(ISSUER.crl([77], reason=x509.ReasonFlags.remove_from_crl)).good == ("CN=leaf",)


def test_a_reason_that_cannot_be_read_makes_it_no_less_revoked() -> None:
    entry = (
        x509.RevokedCertificateBuilder()
        .serial_number(77)
        .revocation_date(START)
        .add_extension(
            x509.UnrecognizedExtension(x509.ObjectIdentifier("2.5.29.21"), b"\x02\x01\x00"),
            critical=False,
        )
        .build()
    )
    crl = (
        x509.CertificateRevocationListBuilder()
        .issuer_name(x509.load_der_x509_certificate(ISSUER.certificate.der).subject)
        .last_update(START)
        .next_update(END)
        .add_revoked_certificate(entry)
        .sign(ISSUER.key, hashes.SHA256())
    )
    with pytest.raises(VerificationError) as caught:
        check(crl)
    assert "unspecified" in caught.value.got


@pytest.mark.parametrize(
    "bounds",
    [
        (START, NOW - datetime.timedelta(days=1)),
        (NOW + datetime.timedelta(days=1), END),
    ],
)
def test_a_list_of_another_time_vouches_for_nothing_but_still_revokes(
    bounds: tuple[datetime.datetime, datetime.datetime],
) -> None:
    start, end = bounds
    assert check(ISSUER.crl(start=start, end=end)).good == ()
    with pytest.raises(VerificationError):
        check(ISSUER.crl([77], start=start, end=end))


def test_another_issuers_list_says_nothing() -> None:
    assert check(SimulatedTpmVendor("other").intermediate.crl([77])).good == ()


def test_a_namesakes_signature_says_nothing() -> None:
    namesake = SimulatedTpmVendor("vendor")
    namesake.intermediate.key = ecc_key("somebody else", ec.SECP256R1())
    assert check(namesake.intermediate.crl([77])).good == ()


def test_an_issuer_that_may_not_sign_lists_says_nothing() -> None:
    mute = VENDOR.subordinate(
        "mute",
        [
            (x509.BasicConstraints(ca=True, path_length=None), True),
            (key_usage("key_cert_sign"), True),
        ],
    )
    leaf = mute.issue("leaf", KEY, ek_extensions(KEY), serial=77)
    path = (leaf, mute.certificate, VENDOR.root.certificate)
    assert check(mute.crl([77]), path=path).good == ()


def test_an_issuer_without_key_usage_may_sign_lists() -> None:
    plain = VENDOR.subordinate("plain", authority()[:1])
    leaf = plain.issue("leaf", KEY, ek_extensions(KEY), serial=77)
    path = (leaf, plain.certificate, VENDOR.root.certificate)
    assert check(plain.crl(), path=path).good == ("CN=leaf",)


@pytest.mark.parametrize(
    "key",
    [
        ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
        x25519.X25519PrivateKey.from_private_bytes(bytes(32)).public_key(),
    ],
)
def test_a_list_that_the_issuers_kind_of_key_cannot_sign_says_nothing(key: PublicKey) -> None:
    odd = VENDOR.root.issue(ISSUER.common_name, key, authority())
    assert check(ISSUER.crl([77]), path=(LEAF, odd, VENDOR.root.certificate)).good == ()


def point(
    *,
    address: str | None = None,
    user: bool = False,
    ca: bool = False,
    indirect: bool = False,
    attribute: bool = False,
    relative: x509.RelativeDistinguishedName | None = None,
    reasons: frozenset[x509.ReasonFlags] | None = None,
) -> x509.IssuingDistributionPoint:
    return x509.IssuingDistributionPoint(
        full_name=[x509.UniformResourceIdentifier(address)] if address else None,
        relative_name=relative,
        only_contains_user_certs=user,
        only_contains_ca_certs=ca,
        only_some_reasons=reasons,
        indirect_crl=indirect,
        only_contains_attribute_certs=attribute,
    )


NAME = x509.RelativeDistinguishedName([x509.NameAttribute(NameOID.COMMON_NAME, "relative")])


@pytest.mark.parametrize(
    ("make", "covered"),
    [
        (lambda: point(address=CRL_ADDRESS), True),
        (lambda: point(user=True), True),
        (lambda: point(address="http://elsewhere.example/crl"), False),
        (lambda: point(ca=True), False),
        (lambda: point(indirect=True), False),
        (lambda: point(attribute=True), False),
        (lambda: point(relative=NAME), False),
        (lambda: point(reasons=frozenset({x509.ReasonFlags.key_compromise})), False),
    ],
)
def test_a_list_speaks_only_about_what_is_in_its_scope(
    make: Callable[[], x509.IssuingDistributionPoint], covered: bool
) -> None:
    crl = ISSUER.crl(extensions=[(make(), True)])
    assert check(crl).good == (("CN=leaf",) if covered else ())


def test_a_list_of_users_does_not_speak_about_authorities() -> None:
    assert check(VENDOR.root.crl(extensions=[(point(user=True), True)])).good == ()
    assert check(VENDOR.root.crl(extensions=[(point(ca=True), True)])).good == (
        "CN=vendor intermediate",
    )


def test_a_delta_list_or_an_unknown_critical_extension_is_not_a_whole_list() -> None:
    assert check(ISSUER.crl(extensions=[(x509.DeltaCRLIndicator(1), True)])).good == ()
    assert check(ISSUER.crl(extensions=[(x509.CRLNumber(1), False)])).good == ("CN=leaf",)
