"""The VM descriptor: what a virtual machine is made of, as its host sees it.

It is written before the machine runs and measured by the launch into PCR 18.  Deterministic CBOR,
so that equal machines have equal bytes::

    {"version": 1, "name": tstr, "hypervisor": bstr .size 32, "machine": tstr,
     "accelerator": tstr, "cpu": tstr, "vcpus": uint, "memory": uint,
     "firmware": bstr .size 32, "variables": bstr .size 32, "kernel": bstr .size 32,
     "initrd": bstr .size 32, "command-line": tstr, "devices": {* tstr => tstr},
     "network": [* tstr], "vtpm": bstr}

Byte strings of 32 are SHA-256 digests: of the hypervisor's program file, the firmware image, the
file that the firmware's variables start from, kernel and initrd.  ``memory`` is in bytes.
``devices`` has every device by where it stands (``pci/00:1f.2``, ``chardev/serial``) with what it
is; ``network`` has the MAC address of each network device.  ``vtpm`` is the SHA-256 of the EK
certificate (DER) of the machine's TPM, empty where that is not known.  Paths are left out: they
say where things lie on a host, not what they are.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Annotated

import msgspec

from undercroft.base import FormatError
from undercroft.formats import cbor

FORMAT = "VM descriptor"
VERSION = 1
LIMITS = cbor.Limits(depth=3, items=1 << 12, size=64 << 10)


@dataclass(frozen=True, slots=True)
class VmDescriptor:
    """A machine; see the module's description for each field."""

    name: str
    hypervisor: bytes
    machine: str
    accelerator: str
    cpu: str
    vcpus: int
    memory: int
    firmware: bytes
    variables: bytes
    kernel: bytes
    initrd: bytes
    command_line: str
    devices: Mapping[str, str]
    network: tuple[str, ...]
    vtpm: bytes

    def __post_init__(self) -> None:
        object.__setattr__(self, "devices", MappingProxyType(dict(sorted(self.devices.items()))))


_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    version: int
    name: str
    hypervisor: _Digest
    machine: str
    accelerator: str
    cpu: str
    vcpus: Annotated[int, msgspec.Meta(ge=1)]
    memory: Annotated[int, msgspec.Meta(ge=1)]
    firmware: _Digest
    variables: _Digest
    kernel: _Digest
    initrd: _Digest
    command_line: str
    devices: dict[str, str]
    network: list[str]
    vtpm: Annotated[bytes, msgspec.Meta(max_length=32)]


def parse_descriptor(data: bytes) -> VmDescriptor:
    """Parse a descriptor.  Raises FormatError; encoding the result gives back ``data``."""
    wire = cbor.convert(cbor.decode(data, FORMAT, limits=LIMITS), _Wire, FORMAT)
    if wire.version != VERSION:
        raise FormatError(FORMAT, 0, "unknown version", expected=VERSION, got=wire.version)
    if len(wire.vtpm) not in (0, 32):
        raise FormatError(FORMAT, 0, "vtpm is no digest", expected="0 or 32 bytes")
    return VmDescriptor(
        name=wire.name,
        hypervisor=wire.hypervisor,
        machine=wire.machine,
        accelerator=wire.accelerator,
        cpu=wire.cpu,
        vcpus=wire.vcpus,
        memory=wire.memory,
        firmware=wire.firmware,
        variables=wire.variables,
        kernel=wire.kernel,
        initrd=wire.initrd,
        command_line=wire.command_line,
        devices=wire.devices,
        network=tuple(wire.network),
        vtpm=wire.vtpm,
    )


def encode_descriptor(descriptor: VmDescriptor) -> bytes:
    """Encode ``descriptor``."""
    return cbor.encode(
        {
            "version": VERSION,
            "name": descriptor.name,
            "hypervisor": descriptor.hypervisor,
            "machine": descriptor.machine,
            "accelerator": descriptor.accelerator,
            "cpu": descriptor.cpu,
            "vcpus": descriptor.vcpus,
            "memory": descriptor.memory,
            "firmware": descriptor.firmware,
            "variables": descriptor.variables,
            "kernel": descriptor.kernel,
            "initrd": descriptor.initrd,
            "command-line": descriptor.command_line,
            "devices": dict(descriptor.devices),
            "network": list(descriptor.network),
            "vtpm": descriptor.vtpm,
        }
    )


def descriptor_digest(data: bytes) -> bytes:
    """Return what a host names an encoded descriptor by: its SHA-256."""
    return hashlib.sha256(data).digest()
