"""Whom the operator's folder makes us trust: its roots, and nobody else in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.tpm.certificate import encode_crl
from undercroft.service.authorities import read_authorities
from undercroft.testing.tpm_vendor import SimulatedTpmVendor

VENDOR = SimulatedTpmVendor()
ROOT, INTERMEDIATE = VENDOR.root.certificate, VENDOR.intermediate.certificate


def filled(folder: Path) -> Path:
    (folder / "root.pem").write_bytes(ROOT.certificate.public_bytes(Encoding.PEM))
    (folder / "between.DER").write_bytes(INTERMEDIATE.der)
    (folder / "revoked.crl").write_bytes(encode_crl(VENDOR.root.crl([5])))
    (folder / "key.pem").write_bytes(b"-----BEGIN PRIVATE KEY-----\n")
    (folder / "notes.txt").write_bytes(b"not looked at")
    return folder


def test_only_what_names_itself_is_a_root(tmp_path: Path) -> None:
    found = read_authorities(filled(tmp_path))
    assert [c.der for c in found.roots] == [ROOT.der]
    assert [c.der for c in found.intermediates] == [INTERMEDIATE.der]
    assert [crl.get_revoked_certificate_by_serial_number(5) is not None for crl in found.crls] == [
        True
    ]


def test_without_a_root_nothing_is_trusted(tmp_path: Path) -> None:
    folder = filled(tmp_path)
    (folder / "root.pem").unlink()
    for where in (folder, tmp_path / "none"):
        with pytest.raises(EnvironmentFault, match="no root certificate"):
            read_authorities(where)


@pytest.mark.parametrize("name", ["more.crt", "more.crl"])
def test_a_file_that_is_not_what_its_name_says_is_refused(tmp_path: Path, name: str) -> None:
    (filled(tmp_path) / name).write_bytes(b"junk")
    with pytest.raises(FormatError):
        read_authorities(tmp_path)


def test_a_file_that_cannot_be_read_is_said(tmp_path: Path) -> None:
    (filled(tmp_path) / "folder.crt").mkdir()
    with pytest.raises(EnvironmentFault, match="cannot read"):
        read_authorities(tmp_path)
