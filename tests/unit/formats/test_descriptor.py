"""The VM descriptor: one encoding for one machine, and strict parsing."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from undercroft.base import FormatError
from undercroft.formats import cbor
from undercroft.formats.descriptor import (
    VmDescriptor,
    descriptor_digest,
    encode_descriptor,
    parse_descriptor,
)

MACHINE = VmDescriptor(
    name="web",
    hypervisor=b"q" * 32,
    machine="q35,smm=off",
    accelerator="kvm",
    cpu="host",
    vcpus=2,
    memory=512 << 20,
    firmware=b"f" * 32,
    variables=b"v" * 32,
    kernel=b"k" * 32,
    initrd=b"i" * 32,
    command_line="quiet",
    devices={"pci/00:00.0": "8086:29c0", "chardev/serial": "chardev-socket"},
    network=("52:54:00:12:34:56",),
    vtpm=b"e" * 32,
)
OTHER: dict[str, Any] = {
    "name": "db",
    "machine": "q35,smm=on",
    "accelerator": "tcg",
    "cpu": "host,-vmx",
    "vcpus": 4,
    "memory": 1 << 30,
    "command_line": "quiet nokaslr",
    "devices": {},
    "network": (),
    "vtpm": b"",
}


def changed(**parts: Any) -> bytes:
    return cbor.encode({**cbor.decode(encode_descriptor(MACHINE), "test"), **parts})


def test_it_is_read_as_it_was_written() -> None:
    data = encode_descriptor(MACHINE)
    assert parse_descriptor(data) == MACHINE
    assert encode_descriptor(parse_descriptor(data)) == data
    assert len(descriptor_digest(data)) == 32


def test_the_order_of_devices_does_not_matter() -> None:
    turned = replace(MACHINE, devices=dict(reversed(list(MACHINE.devices.items()))))
    assert encode_descriptor(turned) == encode_descriptor(MACHINE)


@pytest.mark.parametrize("field", [field.name for field in fields(VmDescriptor)])
def test_every_field_is_in_the_digest(field: str) -> None:
    other = replace(MACHINE, **{field: OTHER.get(field, b"x" * 32)})
    assert parse_descriptor(encode_descriptor(other)) == other != MACHINE


@pytest.mark.parametrize(
    "data",
    [
        b"",
        encode_descriptor(MACHINE)[:-1],
        encode_descriptor(MACHINE) + b"\0",
        changed(version=2),
        changed(kernel=b"short"),
        changed(vtpm=b"short"),
        changed(vcpus=0),
        changed(memory=-1),
        changed(devices={"x": 1}),
        changed(usb=True),
    ],
)
def test_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        parse_descriptor(data)
