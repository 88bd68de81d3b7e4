"""Endorsement keys: the profile's templates, what certificates say, and tolerated habits."""

from __future__ import annotations

import datetime
import hashlib
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ed25519
from msgspec.structs import replace

from undercroft.base import HashAlgorithm, VerificationError
from undercroft.formats.tpm import EccPublic, RsaPublic, TpmRh
from undercroft.formats.tpm.certificate import TpmCertificate, parse_certificate
from undercroft.testing.endorsement import TEMPLATES, SimulatedEk
from undercroft.testing.tpm_vendor import (
    AIA,
    CRL_ADDRESS,
    NOW,
    SimulatedTpmVendor,
    key_usage,
    tpm_attributes,
)
from undercroft.verify.checks_key_certificate import (
    QUIRKS,
    TpmIdentity,
    VerifiedCertificate,
    verify_key_certificate,
)
from undercroft.verify.ek import (
    EK_CERTIFICATE,
    POLICY_A,
    POLICY_B,
    verify_ek,
    verify_ek_certificate,
    verify_pinned_ek,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "tpm"
VENDOR = SimulatedTpmVendor()
EK = SimulatedEk("L-2")
Extensions = list[tuple[x509.ExtensionType, bool]]


def verified(leaf: TpmCertificate, ek: SimulatedEk = EK) -> VerifiedCertificate:
    return verify_ek_certificate(
        ek.ek,
        leaf,
        intermediates=[VENDOR.intermediate.certificate],
        roots=[VENDOR.root.certificate],
        crls=[],
        now=NOW,
    ).certificate


@pytest.mark.parametrize("template", TEMPLATES)
def test_the_profiles_templates_are_recognised_and_certified(template: str) -> None:
    ek = SimulatedEk(template)
    assert ek.ek.template == template
    certificate = verified(VENDOR.ek_certificate(ek.private.public_key()), ek)
    assert certificate.identity == TpmIdentity("id:55434654", "simulated", "id:00010000")
    assert certificate.quirks == ()
    assert certificate.issuer_addresses == (AIA,)
    assert certificate.revocation.unknown == (
        ("", (CRL_ADDRESS,)),
        ("CN=vendor intermediate", ()),
    )
    names = [member.subject for member in certificate.path]
    assert names == ["", "CN=vendor intermediate", "CN=vendor root"]


def test_a_key_of_no_template_is_still_an_endorsement_key() -> None:
    key = EK.public.key
    assert isinstance(key, EccPublic)
    assert key.symmetric is not None
    public = replace(EK.public, key=replace(key, symmetric=replace(key.symmetric, key_bits=256)))
    assert verify_ek(public).template is None


def test_a_key_without_a_hash_of_the_profile_has_no_policy_of_the_profile() -> None:
    for name_alg in (None, HashAlgorithm.SHA1):
        with pytest.raises(VerificationError) as caught:
            verify_ek(replace(EK.public, name_alg=name_alg))
        assert caught.value.check == "ek.policy"


def test_an_rsa_key_with_a_scheme_is_not_the_profiles() -> None:
    public = SimulatedEk("L-1").public
    assert isinstance(public.key, RsaPublic)
    with pytest.raises(VerificationError) as caught:
        verify_ek(replace(public, key=replace(public.key, symmetric=None)))
    assert caught.value.check == "ek.protection"


def test_policy_a_is_policy_secret_of_the_endorsement_hierarchy() -> None:
    # TPM2_PolicySecret (Part 3, 23.4): extend with the command code and the Name, then with
    # the empty policyRef.
    command = (0x151).to_bytes(4, "big") + TpmRh.ENDORSEMENT.handle_name
    digest = hashlib.sha256(bytes(32) + command).digest()
    assert hashlib.sha256(digest).digest() == POLICY_A


@pytest.mark.parametrize(
    ("hash_alg", "policy_c"),
    [
        (
            HashAlgorithm.SHA256,
            "3767e2edd43ff45a3a7e1eaefcef78643dca964632e7aad82c673a30d8633fde",
        ),
        (
            HashAlgorithm.SHA384,
            "d6032ce61f2fb3c240eb3cf6a33237ef2b6a16f4293c22b455e261cffd217ad5"
            "b4947c2d73e63005eed2dc2b3593d165",
        ),
        (
            HashAlgorithm.SHA512,
            "589ee1e146544716e8deafe6db247b01b81e9f9c7dd16b814aa159138749105f"
            "ba5388dd1dea702f35240c184933121e2c61b8f50d3ef91393a49a38c3f73fc8",
        ),
    ],
)
def test_policy_b_is_policy_or_of_a_and_the_profiles_nv_index(
    hash_alg: HashAlgorithm, policy_c: str
) -> None:
    size = hash_alg.size
    command = (0x151).to_bytes(4, "big") + TpmRh.ENDORSEMENT.handle_name
    policy_a = hash_alg.hash(hash_alg.hash(bytes(size) + command))
    branches = policy_a + bytes.fromhex(policy_c)
    policy_or = hash_alg.hash(bytes(size) + (0x171).to_bytes(4, "big") + branches)
    assert policy_or == POLICY_B[hash_alg]


def drop(kind: type[x509.ExtensionType]) -> Callable[[Extensions], Extensions]:
    return lambda extensions: [e for e in extensions if not isinstance(e[0], kind)]


def put(value: x509.ExtensionType, *, critical: bool) -> Callable[[Extensions], Extensions]:
    return lambda extensions: [*drop(type(value))(extensions), (value, critical)]


@pytest.mark.parametrize(
    ("change", "quirks"),
    [
        (drop(x509.ExtendedKeyUsage), {"no-extended-key-usage"}),
        (put(key_usage("key_agreement"), critical=False), {"key-usage-not-critical"}),
        (
            put(key_usage("key_agreement", "digital_signature"), critical=True),
            {"key-usage-extra"},
        ),
        (drop(x509.BasicConstraints), {"no-basic-constraints"}),
        (drop(x509.SubjectAlternativeName), {"no-tpm-attributes"}),
        (
            put(x509.SubjectAlternativeName([x509.DNSName("x.example")]), critical=True),
            {"no-tpm-attributes"},
        ),
        (put(tpm_attributes(), critical=False), {"san-not-critical"}),
    ],
)
def test_each_tolerated_habit_is_reported(
    change: Callable[[Extensions], Extensions], quirks: set[str]
) -> None:
    leaf = VENDOR.ek_certificate(EK.private.public_key(), change=change)
    assert set(verified(leaf).quirks) == quirks
    assert quirks <= set(QUIRKS)


def test_a_name_in_the_subject_needs_no_critical_alternative_name() -> None:
    leaf = VENDOR.ek_certificate(
        EK.private.public_key(), change=put(tpm_attributes(), critical=False), subject="TPM"
    )
    assert verified(leaf).quirks == ()


def test_habits_around_the_bytes_are_reported_as_well() -> None:
    leaf = VENDOR.ek_certificate(EK.private.public_key())
    assert verified(parse_certificate(leaf.der + b"\xff" * 9)).quirks == ("nv-padding",)


def test_any_extended_key_usage_will_do() -> None:
    anything = x509.ExtendedKeyUsage([x509.ObjectIdentifier("2.5.29.37.0")])
    leaf = VENDOR.ek_certificate(EK.private.public_key(), change=put(anything, critical=False))
    assert verified(leaf).quirks == ()


def test_no_key_usage_is_no_permission() -> None:
    leaf = VENDOR.ek_certificate(EK.private.public_key(), change=drop(x509.KeyUsage))
    with pytest.raises(VerificationError) as caught:
        verified(leaf)
    assert caught.value.check == "ek.key-usage"


def test_a_certificate_of_another_kind_of_key_is_about_another_key() -> None:
    key = ed25519.Ed25519PrivateKey.from_private_bytes(bytes(32)).public_key()
    leaf = VENDOR.intermediate.issue("", key, [])
    with pytest.raises(VerificationError) as caught:
        verified(leaf)
    assert caught.value.check == "ek.certified-key"


def test_no_address_of_an_issuer_is_none() -> None:
    leaf = VENDOR.ek_certificate(
        EK.private.public_key(), change=drop(x509.AuthorityInformationAccess)
    )
    assert verified(leaf).issuer_addresses == ()


def test_without_roots_nothing_can_be_trusted() -> None:
    leaf = VENDOR.ek_certificate(EK.private.public_key())
    with pytest.raises(ValueError, match="no root"):
        verify_ek_certificate(
            EK.ek, leaf, intermediates=[VENDOR.root.certificate], roots=[], crls=[], now=NOW
        )


def test_a_pinned_key_is_known_by_its_name() -> None:
    assert verify_pinned_ek(EK.ek, {EK.public.name}).ek.name == EK.public.name


def test_a_certificate_for_a_key_that_cannot_be_loaded_is_refused() -> None:
    leaf = VENDOR.ek_certificate(EK.private.public_key())
    assert isinstance(EK.public.key, EccPublic)
    broken = replace(EK.public, key=replace(EK.public.key, y=bytes(32)))
    with pytest.raises(VerificationError, match="cannot be used") as caught:
        verify_key_certificate(
            leaf,
            broken,
            EK_CERTIFICATE,
            intermediates=[],
            roots=[VENDOR.root.certificate],
            crls=[],
            now=NOW,
        )
    assert caught.value.check == "ek.certified-key"


def test_a_signature_over_sha1_is_refused_and_said_to_be_why() -> None:
    case = json.loads((VECTORS / "certificates" / "signed-over-sha1.json").read_text())
    with pytest.raises(VerificationError, match="SHA-1") as caught:
        verify_ek_certificate(
            EK.ek,
            parse_certificate(bytes.fromhex(case["leaf"])),
            intermediates=[],
            roots=[parse_certificate(case["root"].encode())],
            crls=[],
            now=datetime.datetime(2030, 1, 1, tzinfo=datetime.UTC),
        )
    assert caught.value.check == "ek.chain"
