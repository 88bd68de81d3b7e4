"""Certificate paths: loops, cross-signing, limits, and errors that say what is missing."""

from __future__ import annotations

import datetime
from collections.abc import Sequence

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from undercroft.base import VerificationError
from undercroft.formats.tpm.certificate import TpmCertificate
from undercroft.testing.keys import ecc_key
from undercroft.testing.tpm_vendor import (
    AIA,
    END,
    NOW,
    Authority,
    SimulatedTpmVendor,
    authority,
    ek_extensions,
    key_usage,
)
from undercroft.verify.checks_x509 import MAX_ATTEMPTS, MAX_PATH, PathChecks, verify_path

CHECKS = PathChecks.numbered("X", "x", 1)
VENDOR = SimulatedTpmVendor()
KEY = ecc_key("leaf", ec.SECP256R1()).public_key()


def leaf(issuer: Authority) -> TpmCertificate:
    return issuer.issue("leaf", KEY, ek_extensions(KEY))


def path(
    certificate: TpmCertificate,
    intermediates: Sequence[Authority],
    roots: Sequence[Authority] = (VENDOR.root,),
    now: datetime.datetime = NOW,
) -> list[str]:
    found = verify_path(
        certificate,
        [a.certificate for a in intermediates],
        [a.certificate for a in roots],
        now,
        CHECKS,
    )
    return [member.subject for member in found]


def refusal(
    certificate: TpmCertificate,
    intermediates: Sequence[Authority],
    now: datetime.datetime = NOW,
) -> VerificationError:
    with pytest.raises(VerificationError) as caught:
        path(certificate, intermediates, now=now)
    return caught.value


def test_a_root_may_sign_directly() -> None:
    assert path(leaf(VENDOR.root), []) == ["CN=leaf", "CN=vendor root"]


def test_intermediates_may_come_in_any_order_with_others_between() -> None:
    second = VENDOR.subordinate(
        "second", authority(0), issuer=VENDOR.subordinate("first", authority())
    )
    first = VENDOR.subordinate("first", authority())
    others = SimulatedTpmVendor("other")
    found = path(leaf(second), [others.root, second, VENDOR.intermediate, first])
    assert found == ["CN=leaf", "CN=second", "CN=first", "CN=vendor root"]


def test_a_root_among_the_intermediates_is_no_root() -> None:
    stranger = SimulatedTpmVendor("stranger")
    error = refusal(leaf(stranger.intermediate), [stranger.intermediate, stranger.root])
    assert error.check == "x.chain"


def test_a_namesake_with_another_key_does_not_sign() -> None:
    namesake = Authority(VENDOR.intermediate.common_name, ecc_key("other", ec.SECP256R1()))
    namesake.certificate = VENDOR.root.issue(
        namesake.common_name, namesake.key.public_key(), authority()
    )
    error = refusal(leaf(VENDOR.intermediate), [namesake])
    assert error.check == "x.chain"
    assert "CN=vendor intermediate" in error.expected
    assert AIA in error.remedy


def test_a_certificate_that_names_no_address_gets_general_advice() -> None:
    bare = SimulatedTpmVendor("bare").intermediate.issue("leaf", KEY, [])
    assert "vendor" in refusal(bare, []).remedy


def test_the_missing_issuer_further_up_is_named() -> None:
    first = VENDOR.subordinate("first", authority(), issuer=SimulatedTpmVendor("gone").root)
    assert "CN=gone root" in refusal(leaf(first), [first]).expected


def test_two_authorities_that_certify_each_other_end() -> None:
    one = Authority("one", ecc_key("one", ec.SECP256R1()))
    two = Authority("two", ecc_key("two", ec.SECP256R1()))
    one.certificate = two.issue("one", one.key.public_key(), authority())
    two.certificate = one.issue("two", two.key.public_key(), authority())
    assert refusal(leaf(one), [one, two]).check == "x.chain"


def test_a_valid_path_is_found_beside_an_expired_one() -> None:
    old = VENDOR.subordinate("twice", authority(), end=NOW - datetime.timedelta(days=1))
    new = VENDOR.subordinate("twice", authority())
    assert path(leaf(new), [old, new]) == ["CN=leaf", "CN=twice", "CN=vendor root"]
    assert refusal(leaf(new), [old]).check == "x.validity"


def test_an_expired_root_ends_the_path() -> None:
    assert (
        refusal(leaf(VENDOR.root), [], now=END + datetime.timedelta(days=1)).check == "x.validity"
    )


def test_the_path_length_counts_authorities_below() -> None:
    upper = VENDOR.subordinate("upper", authority(0))
    lower = VENDOR.subordinate("lower", authority(), issuer=upper)
    assert path(leaf(upper), [upper]) == ["CN=leaf", "CN=upper", "CN=vendor root"]
    error = refusal(leaf(lower), [upper, lower])
    assert (error.check, error.expected, error.got) == ("x.authority", "at most 0", "1")


@pytest.mark.parametrize(
    "extensions",
    [
        [],
        [(x509.BasicConstraints(ca=False, path_length=None), True)],
        [(x509.BasicConstraints(ca=True, path_length=None), True), (key_usage("crl_sign"), True)],
    ],
)
def test_who_may_not_sign_certificates_is_no_issuer(
    extensions: list[tuple[x509.ExtensionType, bool]],
) -> None:
    powerless = VENDOR.subordinate("powerless", extensions)
    assert refusal(leaf(powerless), [powerless]).check == "x.authority"


def test_an_authority_without_key_usage_may_sign() -> None:
    plain = VENDOR.subordinate("plain", [(x509.BasicConstraints(ca=True, path_length=None), True)])
    assert path(leaf(plain), [plain])


def test_a_path_has_a_limit() -> None:
    chain = [VENDOR.root]
    for depth in range(MAX_PATH):
        chain.append(VENDOR.subordinate(f"depth {depth}", authority(), issuer=chain[-1]))
    assert len(path(leaf(chain[MAX_PATH - 2]), chain[1:])) == MAX_PATH
    assert refusal(leaf(chain[MAX_PATH - 1]), chain[1:]).check == "x.chain"


def test_a_crowd_of_namesakes_has_a_limit() -> None:
    crowd = [VENDOR.subordinate("crowd", authority(i)) for i in range(MAX_ATTEMPTS + 1)]
    stranger = Authority("crowd", ecc_key("stranger", ec.SECP256R1()))
    assert refusal(leaf(stranger), crowd).check == "x.chain"
