"""The parts of a disk: partition table, our own files, images and signatures, all reproducible."""

from __future__ import annotations

import datetime as dt
import gzip
import hashlib
import io
import struct
import tarfile
from pathlib import Path
from uuid import UUID

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.eventlog.gpt import PartitionTable, decode_gpt
from undercroft.formats.pe import parse_pe
from undercroft.guests.cpio import directory, file, read_cpio, write_cpio
from undercroft.guests.debian import recipe
from undercroft.guests.debian.disk import PARTITIONS, partition_table
from undercroft.guests.debian.files import initrd_files, made_files
from undercroft.guests.debian.gpt import ESP, Partition, make_gpt
from undercroft.guests.debian.predict import verifies
from undercroft.guests.debian.tools import run
from undercroft.guests.debian.tree import own_files, source_date
from undercroft.guests.debian.uki import make_uki, sign_pe
from undercroft.packages import VerifiedPackage
from undercroft.reference.archive import FileFlag, PackageRecord
from undercroft.reference.archive_build import PackageFiles
from undercroft.reference.boot.ovmf import partition_event
from undercroft.reference.model import Grade, Provenance
from undercroft.testing.bootdisk import make_pe

OURS = Provenance(Grade.BUILT)


def test_the_partition_table_is_what_the_firmware_will_measure() -> None:
    first, last = partition_table()
    assert len(first) == 34 * 512
    assert len(last) == 33 * 512
    table, _ = decode_gpt(partition_event(first, OURS).data, {})
    table = getattr(table, "claimed_value", table)
    assert isinstance(table, PartitionTable)
    assert [entry.name for entry in table.partitions] == ["esp", "root", "bios"]
    assert first[510:512] == b"\x55\xaa"
    assert partition_table() == (first, last)


def test_partitions_that_overlap_are_refused() -> None:
    twice = Partition("x", ESP, recipe.ESP_GUID, 40, 50)
    with pytest.raises(ValueError, match="overlaps"):
        make_gpt(recipe.DISK_GUID, [twice, twice], 200)
    with pytest.raises(ValueError, match="leaves the disk"):
        make_gpt(recipe.DISK_GUID, [twice], 80)
    assert len({p.guid for p in PARTITIONS}) == len(PARTITIONS)
    assert all(isinstance(p.guid, UUID) for p in PARTITIONS)


def test_our_files_are_a_tar_of_root_s() -> None:
    data = own_files(recipe.late_files("Types: deb\n"), 1000)
    assert own_files(recipe.late_files("Types: deb\n"), 1000) == data
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        entries = {entry.name: entry for entry in tar}
        assert {entry.mtime for entry in tar} == {1000}
        assert {(entry.uid, entry.gid) for entry in tar} == {(0, 0)}
    assert entries["./usr/local/sbin/undercroft-console"].mode == 0o755
    link = entries["./etc/systemd/system/serial-getty@ttyS0.service"]
    assert (link.issym(), link.linkname) == (True, "/dev/null")


def package(path: Path, date: str) -> VerifiedPackage:
    path.write_bytes(b"!<arch>\n" + b"debian-binary   " + date.ljust(12).encode())
    return VerifiedPackage(path.name, "1", "all", path, "0" * 64, OURS)


def test_nothing_is_dated_after_the_newest_package(tmp_path: Path) -> None:
    packages = [package(tmp_path / name, date) for name, date in (("a", "17"), ("b", "1800"))]
    assert source_date(packages) == 1800
    with pytest.raises(FormatError, match="no date"):
        source_date([package(tmp_path / "c", "soon")])


def test_made_files_are_those_that_no_package_has(tmp_path: Path) -> None:
    tree = tmp_path / "tree.tar"
    tree.write_bytes(
        own_files({f"/etc/{n}": recipe.OwnFile(n) for n in ("a b", "c", "machine-id")}, 0)
    )
    digest = hashlib.sha256(b"a b").digest()
    record = PackageRecord("p", "1", "all")
    known = PackageFiles(record, ((b"/etc/a_b", digest, FileFlag.NONE),))
    assert set(made_files(tree, [known])) == {"/etc/c"}
    assert set(made_files(tree, [])) == {"/etc/a b", "/etc/c"}


def test_an_initrd_is_taken_apart() -> None:
    archive = write_cpio([directory("/bin"), file("/bin/sh", b"shell"), file("/empty", b"")])
    assert initrd_files(gzip.compress(archive)) == {"/bin/sh": b"shell", "/empty": b""}
    assert initrd_files(archive)["/bin/sh"] == b"shell"
    for broken in (gzip.compress(archive)[:-9], archive[:-200], b"x" * 200, b"070701" + b"z" * 200):
        with pytest.raises(FormatError):
            initrd_files(broken)


def test_hard_links_in_an_archive_have_the_bytes_of_the_last() -> None:
    def entry(name: str, data: bytes) -> bytes:
        fields = [7, 0o100644, 0, 0, 2, 0, len(data), 0, 0, 0, 0, len(name) + 1, 0]
        head = b"070701" + b"".join(b"%08X" % number for number in fields)
        named = head + name.encode() + b"\0"
        return named + bytes(-len(named) % 4) + data + bytes(-len(data) % 4)

    archive = entry("one", b"") + entry("two", b"same") + entry("TRAILER!!!", b"")
    assert read_cpio(archive) == {"/one": b"same", "/two": b"same"}


STUB = make_pe({".text": b"stub".ljust(512, b"\0")})


def test_a_unified_image_has_its_parts() -> None:
    image = make_uki(STUB, {".cmdline": b"ro\0", ".linux": b"kernel" * 200})
    parsed = parse_pe(image)
    assert parsed.section(".linux") == b"kernel" * 200
    assert parsed.section(".cmdline") == b"ro\0"
    assert [s.virtual_address for s in parsed.sections[1:]] == [0x30000, 0x2000000]
    assert make_uki(STUB, {".cmdline": b"ro\0", ".linux": b"kernel" * 200}) == image
    with pytest.raises(FormatError, match="would overlap"):
        make_uki(STUB, {".linux": b"", ".cmdline": b""})
    with pytest.raises(FormatError, match="would overlap"):
        make_uki(STUB, {".osrel": bytes(0x20000), ".cmdline": b""})
    crowded = bytearray(STUB)
    struct.pack_into("<I", crowded, 0x58 + 60, 0x1A0)
    with pytest.raises(FormatError):
        make_uki(bytes(crowded), {".cmdline": b"ro\0", ".linux": b"k", ".initrd": b"i"})


def certified(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> tuple[bytes, bytes]:
    """Return the key, encrypted, and a certificate for it, both in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test")])
    day = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
    certificate = (
        x509.CertificateBuilder().subject_name(name).issuer_name(name).serial_number(0x80)
        .public_key(key.public_key()).not_valid_before(day)
        .not_valid_after(day + dt.timedelta(days=9)).sign(key, hashes.SHA256())
    )  # fmt: skip
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(b"word"),
    )  # fmt: skip
    return pem, certificate.public_bytes(serialization.Encoding.PEM)


def test_a_signed_program_verifies_and_signing_again_changes_nothing() -> None:
    pem, certificate = certified(rsa.generate_private_key(65537, 2048))
    der = x509.load_pem_x509_certificate(certificate).public_bytes(serialization.Encoding.DER)
    signed = sign_pe(STUB, pem, certificate, b"word")
    assert verifies(signed, der)
    assert sign_pe(signed, pem, certificate, b"word") == signed
    assert not verifies(STUB, der)
    assert not verifies(signed.replace(b"stub", b"STUB"), der)
    _, other = certified(rsa.generate_private_key(65537, 2048))
    assert not verifies(
        signed, x509.load_pem_x509_certificate(other).public_bytes(serialization.Encoding.DER)
    )


def test_only_rsa_keys_sign() -> None:
    pem, certificate = certified(ec.generate_private_key(ec.SECP256R1()))
    with pytest.raises(FormatError, match="not an RSA key"):
        sign_pe(STUB, pem, certificate, b"word")


def test_tools_say_what_is_missing_and_what_went_wrong(tmp_path: Path) -> None:
    assert run(["cat"], stdin=b"x", folder=tmp_path) == b"x"
    with pytest.raises(EnvironmentFault, match="is not installed"):
        run(["no-such-tool"])
    with pytest.raises(EnvironmentFault, match="sh failed"):
        run(["sh", "-c", "echo why >&2; exit 3"])
    with pytest.raises(EnvironmentFault, match="exit status 3"):
        run(["sh", "-c", "exit 3"])


def test_the_configuration_leads_to_the_kernel() -> None:
    config = recipe.grub_config("6.1.0-1")
    assert f"linux /boot/vmlinuz-6.1.0-1 {recipe.COMMAND_LINE}\n" in config
    assert str(recipe.ROOT_UUID) in recipe.grub_redirect()
