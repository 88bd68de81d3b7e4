"""Profiles that were made here are kept by their package; others have to be signed."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.formats.kernel.profile import (
    PackageIdentity,
    VmlinuzIdentity,
    encode_profile,
    parse_profile,
)
from undercroft.packages import profiles
from undercroft.packages.deb import DebEntry, EntryKind
from undercroft.packages.profiles import ProfileStore
from undercroft.testing.tinykernel import TinyKernel
from undercroft.verify.profile_signature import sign_profile

KEY = Ed25519PrivateKey.from_private_bytes(b"\1" * 32)
PEM = KEY.public_key().public_bytes(
    serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
)


def made(sha256: str = "ab" * 32) -> bytes:
    tiny = TinyKernel()
    tiny.code(0x100, "c3", "one")
    tiny.alternative(0x120, 3, 7, b"\x90")
    package = PackageIdentity("linux-image-tiny", "1", "amd64", sha256)
    return encode_profile(package, VmlinuzIdentity("cd" * 32, "6.1 tiny", ""), tiny.elf(), {})


@pytest.fixture
def builds(monkeypatch: pytest.MonkeyPatch) -> list[bytes]:
    """What profiles were made of, in order."""
    calls: list[bytes] = []

    def build(deb: bytes, *_: object) -> bytes:
        calls.append(deb)
        return made(hashlib.sha256(deb).hexdigest())

    monkeypatch.setattr(profiles, "build_profile", build)
    monkeypatch.setattr(profiles, "package_identity", lambda _: None)
    return calls


def test_a_profile_is_made_once(tmp_path: Path, builds: list[bytes]) -> None:
    store, deb = ProfileStore(tmp_path / "profiles"), tmp_path / "one.deb"
    deb.write_bytes(b"one")
    said: list[str] = []
    first = store.of_package(deb, sha256=hashlib.sha256(b"one").hexdigest(), say=said.append)
    assert store.of_package(deb).id == first.id
    assert (builds, len(said)) == ([b"one"], 1)
    assert store.was_made_here(first)
    deb.write_bytes(b"two")
    assert store.of_package(deb).id != first.id


def test_a_profile_that_was_damaged_is_made_again(tmp_path: Path, builds: list[bytes]) -> None:
    store, deb = ProfileStore(tmp_path / "profiles"), tmp_path / "one.deb"
    deb.write_bytes(b"one")
    store.of_package(deb)
    (kept,) = (tmp_path / "profiles").glob("*.profile")
    kept.write_bytes(kept.read_bytes()[:-1])
    store.of_package(deb)
    assert len(builds) == 2


def test_who_is_trusted_with_the_kernel_is_part_of_the_name(
    tmp_path: Path, builds: list[bytes]
) -> None:
    store, deb = ProfileStore(tmp_path / "profiles"), tmp_path / "one.deb"
    deb.write_bytes(b"one")
    for anchors in ([], [b"a"], [b"b"], [b"a"]):
        store.of_package(deb, anchors=anchors)
    assert len(builds) == 3


def test_another_package_than_the_verified_one(tmp_path: Path, builds: list[bytes]) -> None:
    deb = tmp_path / "one.deb"
    with pytest.raises(EnvironmentFault):
        ProfileStore(tmp_path).of_package(deb)
    deb.write_bytes(b"one")
    with pytest.raises(VerificationError) as caught:
        ProfileStore(tmp_path).of_package(deb, sha256="00" * 32)
    assert caught.value.check == "archive.package"
    assert not builds


def test_a_profile_from_elsewhere_needs_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path / "home"))
    path = tmp_path / "tiny.profile"
    path.write_bytes(made())
    profile = parse_profile(made())
    with pytest.raises(VerificationError) as caught:
        wiring.open_kernel(path)
    assert caught.value.check == "profile.signature"
    with pytest.raises(EnvironmentFault):  # there is no envelope
        wiring.open_kernel(path, [PEM])
    wiring.signature_path(path).write_bytes(sign_profile(profile, KEY))
    opened = wiring.open_kernel(path, [PEM])
    assert opened.profile is not None
    assert opened.profile.id == profile.id
    assert opened.image.release == "6.1"


def test_a_profile_that_was_made_here_needs_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path / "home"))
    path = tmp_path / "tiny.profile"
    path.write_bytes(made())
    wiring.profiles().remember(parse_profile(made()))
    opened = wiring.open_kernel(path)
    assert opened.library("nothing") is None
    with pytest.raises(EnvironmentFault):  # a key was named, and the signature is missing
        wiring.open_kernel(path, [PEM])


def test_a_vmlinuz_alone_has_no_modules(tmp_path: Path) -> None:
    path = tmp_path / "vmlinuz"
    tiny = TinyKernel()
    tiny.code(0x100, "c3", "one")
    tiny.alternative(0x120, 3, 7, b"\x90")
    path.write_bytes(tiny.vmlinuz())
    opened = wiring.open_kernel(path)
    assert opened.profile is None
    assert opened.library("ext4") is None


def test_the_certificates_of_a_shim_package(monkeypatch: pytest.MonkeyPatch) -> None:
    found = [DebEntry("/usr/share/shim/some-ca.der", EntryKind.FILE, 0o644, data=b"certificate")]

    def read(_deb: bytes, wanted: Callable[[str], bool]) -> list[DebEntry]:
        return [entry for entry in found if wanted(entry.path)]

    monkeypatch.setattr(profiles, "read_deb", read)
    assert profiles.shim_certificates(b"") == [b"certificate"]
    found.clear()
    with pytest.raises(FormatError, match="no certificate"):
        profiles.shim_certificates(b"")
