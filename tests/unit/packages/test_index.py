"""Packages indexes: tied to the Release file, searched, parsed strictly."""

from __future__ import annotations

import contextlib
import datetime as dt
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from undercroft.base import FormatError, VerificationError
from undercroft.packages.index import PackagesIndex, parse_package
from undercroft.packages.release import (
    FreshnessRule,
    SignedText,
    VerifiedRelease,
    verify_release,
)

VECTORS = Path(__file__).parents[2] / "vectors" / "archive"
PACKAGES = (VECTORS / "Packages").read_bytes()
META_KEY = "main/binary-amd64/Packages"
STANZA = PACKAGES.decode().split("\n\n")[0]


@pytest.fixture
def release() -> VerifiedRelease:
    return verify_release(
        SignedText((VECTORS / "Release").read_bytes(), "ab" * 32, ("A" * 40,)),
        suite="bookworm",
        now=dt.datetime(2026, 1, 3, tzinfo=dt.UTC),
        rule=FreshnessRule(),
        last_seen={},
    )


def test_packages_are_found_by_exact_name(release: VerifiedRelease) -> None:
    index = PackagesIndex(PACKAGES, release, META_KEY)
    assert [s.version for s in index.find("true")] == ["1.0-1", "1:0.9-1"]
    assert [s.architecture for s in index.find("truest")] == ["all"]
    assert list(index.find("tru")) == []
    assert index.origin == "Debian bookworm main"


def test_versions_compare_as_dpkg_compares_them(release: VerifiedRelease) -> None:
    index = PackagesIndex(PACKAGES, release, META_KEY)
    assert max(index.find("true"), key=lambda s: s.order).version == "1:0.9-1"


def test_fields_of_a_stanza() -> None:
    stanza = parse_package(STANZA)
    assert (stanza.name, stanza.size, stanza.depends) == ("true", 4, "libc6 (>= 2.36)")
    assert stanza.filename.endswith("true_1.0-1_amd64.deb")


def test_an_index_with_another_digest_is_refused(release: VerifiedRelease) -> None:
    changed = PACKAGES.replace(b"Size: 4", b"Size: 5")
    with pytest.raises(VerificationError, match="another digest") as caught:
        PackagesIndex(changed, release, META_KEY)
    assert caught.value.check == "archive.index"


def test_a_truncated_index_is_refused(release: VerifiedRelease) -> None:
    with pytest.raises(VerificationError, match="another size") as caught:
        PackagesIndex(PACKAGES[:-1], release, META_KEY)
    assert caught.value.check == "archive.index"


def test_an_index_that_the_release_does_not_name_is_refused(release: VerifiedRelease) -> None:
    with pytest.raises(VerificationError, match="does not name") as caught:
        PackagesIndex(PACKAGES, release, "contrib/binary-amd64/Packages")
    assert caught.value.check == "archive.index"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("Package: true", "Package: ../true"),
        ("Version: 1.0-1", "Version: 1.0 1"),
        ("Version: 1.0-1\n", ""),
        ("Architecture: amd64", "Architecture: amd64/../x"),
        ("Size: 4", "Size: -4"),
        ("Size: 4", "Size: 99999999999"),
        ("SHA256: b5", "SHA256: B5"),
        ("SHA256: b5", "SHA256: b"),
        ("Size: 4", "Size: 4\nSize: 5"),
        ("Filename", "File name"),
    ],
)
def test_a_strange_stanza_is_refused(old: str, new: str) -> None:
    assert old in STANZA
    with pytest.raises(FormatError):
        parse_package(STANZA.replace(old, new, 1))


@given(st.text(max_size=60), st.integers(0, len(STANZA)))
def test_only_format_errors_escape(noise: str, at: int) -> None:
    with contextlib.suppress(FormatError):
        parse_package(STANZA[:at] + noise + STANZA[at:])
