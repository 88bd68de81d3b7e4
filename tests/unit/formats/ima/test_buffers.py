from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given, settings
from hypothesis import strategies as st

from undercroft.formats.ima import (
    CriticalData,
    DeviceMapperEvent,
    KexecCmdline,
    KeyringKey,
    MeasuredBuffer,
    OpaqueBuffer,
    decode_buffer,
    describe_buffer,
)


def certificate(*, with_id: bool) -> tuple[bytes, bytes]:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "IMA key")])
    day = datetime.datetime(2024, 1, 1)
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(7)
        .not_valid_before(day)
        .not_valid_after(day + datetime.timedelta(days=9999))
    )
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    if with_id:
        builder = builder.add_extension(identifier, critical=False)
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    return der, identifier.digest


def test_a_kexec_command_line() -> None:
    assert decode_buffer(b"kexec-cmdline", b"root=/dev/vda1 ro") == KexecCmdline(
        "root=/dev/vda1 ro"
    )


def test_a_kexec_command_line_that_is_not_text() -> None:
    assert decode_buffer(b"kexec-cmdline", b"\xff") == OpaqueBuffer("kexec-cmdline", b"\xff")


@pytest.mark.parametrize("with_id", [True, False])
def test_a_key_added_to_a_keyring(with_id: bool) -> None:
    der, identifier = certificate(with_id=with_id)
    expected = KeyringKey(".ima", der, "CN=IMA key", identifier if with_id else None)
    assert decode_buffer(b".ima", der) == expected


def test_a_key_that_is_no_certificate() -> None:
    der, _ = certificate(with_id=True)
    assert decode_buffer(b".ima", der[:-1]) == OpaqueBuffer(".ima", der[:-1])


def test_a_device_mapper_table() -> None:
    text = (
        b"dm_version=4.45.0;"
        b"name=a\\=b\\,c\\;d\\\\,uuid=,major=253,minor=0,minor_count=1,num_targets=1;"
        b"target_index=0,target_begin=0,target_len=2048,target_name=verity,"
        b"target_version=1.8.0,hash_failed=V,root_digest=29cb,ignore_zero_blocks=n;"
    )
    event = decode_buffer(b"dm_table_load", text)
    assert isinstance(event, DeviceMapperEvent)
    assert event.event == "dm_table_load"
    assert len(event.records) == 3
    assert event.value("name") == "a=b,c;d\\"
    assert event.value("uuid") == ""
    assert event.value("target_name") == "verity"
    assert event.value("nothing") is None


def test_device_mapper_values_may_have_pairs_inside() -> None:
    text = b"dm_version=4.45.0;device_active_metadata=name=root,remove_all;"
    event = decode_buffer(b"dm_device_remove", text)
    assert isinstance(event, DeviceMapperEvent)
    assert event.records[1] == (("device_active_metadata", "name=root"), ("remove_all", ""))


@pytest.mark.parametrize("text", [b"no end", b""])
def test_device_mapper_text_that_is_something_else(text: bytes) -> None:
    assert decode_buffer(b"dm_table_load", text) == CriticalData("dm_table_load", text.decode())


def test_other_critical_data() -> None:
    assert decode_buffer(b"kernel_version", b"6.1.0-56-cloud-amd64") == CriticalData(
        "kernel_version", "6.1.0-56-cloud-amd64"
    )
    assert decode_buffer(b"selinux-policy-hash", b"\x30\xff") == OpaqueBuffer(
        "selinux-policy-hash", b"\x30\xff"
    )
    assert decode_buffer(b"0-starts-like-a-sequence", b"0=1\n") == CriticalData(
        "0-starts-like-a-sequence", "0=1\n"
    )


DESCRIBED: dict[str, MeasuredBuffer] = {
    "command line for kexec: 'quiet'": KexecCmdline("quiet"),
    "certificate of 'CN=k' (key id 0102) added to '.ima'": KeyringKey(
        ".ima", b"", "CN=k", b"\x01\x02"
    ),
    "certificate of 'CN=k' (key id none) added to '.ima'": KeyringKey(".ima", b"", "CN=k", None),
    "device mapper: name='root', minor='0'": DeviceMapperEvent(
        "dm_table_load", ((("name", "root"),), (("minor", "0"),))
    ),
    "'two\\nlines'": CriticalData("x", "two\nlines"),
    "2 bytes: 00ff": OpaqueBuffer("x", b"\x00\xff"),
    "65 bytes: " + "00" * 64 + "…": OpaqueBuffer("x", bytes(65)),
}


@pytest.mark.parametrize("words", DESCRIBED)
def test_buffers_in_words(words: str) -> None:
    assert describe_buffer(DESCRIBED[words]) == words


@settings(deadline=None)
@given(st.sampled_from([b"kexec-cmdline", b"dm_x", b".ima", b"\xff"]), st.binary(max_size=60))
def test_nothing_fails(name: bytes, data: bytes) -> None:
    assert describe_buffer(decode_buffer(name, data)).isprintable()


@settings(deadline=None)
@given(st.text("ab=,;\\", max_size=30))
def test_no_device_mapper_text_fails(text: str) -> None:
    decode_buffer(b"dm_x", text.encode())
