"""The machine that QEMU says it runs, against the one that was described."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from undercroft.base import JsonValue, Outcome
from undercroft.formats.descriptor import VmDescriptor
from undercroft.securekernel.hypervisor.machine import MachineView, compare_machine, read_machine

DESCRIBED = VmDescriptor(
    name="web",
    hypervisor=bytes(32),
    machine="q35,smm=off",
    accelerator="tcg",
    cpu="max,la57=off",
    vcpus=2,
    memory=256 << 20,
    firmware=bytes(32),
    variables=bytes(32),
    kernel=bytes(32),
    initrd=bytes(32),
    command_line="quiet",
    devices={
        "pci/00:00.0": "8086:29c0",
        "pci/01:00.0": "1af4:1041",
        "object/ram": "memory-backend-file",
        "block/pflash0": "raw read-only",
        "tpm/tpm": "tpm-crb",
    },
    network=("52:54:00:12:34:56",),
    vtpm=b"",
)
ANSWERS: Mapping[str, JsonValue] = {
    "qmp_capabilities": {},
    "query-cpus-fast": [{"qom-path": "/cpu0"}, {"qom-path": "/cpu1"}],
    "query-kvm": {"enabled": False, "present": True},
    "query-memory-size-summary": {"base-memory": 256 << 20, "plugged-memory": 0},
    "query-pci": [
        {
            "bus": 0,
            "devices": [
                {
                    "bus": 0, "slot": 0, "function": 0, "id": {"vendor": 0x8086, "device": 0x29C0},
                    "pci_bridge": {
                        "devices": [
                            {
                                "bus": 1, "slot": 0, "function": 0,
                                "id": {"vendor": 0x1AF4, "device": 0x1041},
                            }
                        ]
                    },
                }
            ],
        }
    ],
    "query-block": [{"device": "pflash0", "inserted": {"drv": "raw", "ro": True}}],
    "query-named-block-nodes": [{"node-name": "#block1", "drv": "raw"}],
    "query-tpm": [{"id": "tpm", "model": "tpm-crb"}],
    "human-monitor-command": "hub 0\r\n e0: mac=52:54:00:12:34:56\r\n",
}  # fmt: skip
PROPERTIES = {"type": "max-x86_64-cpu", "append": "quiet"}


def _answer(request: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    command, arguments = str(request["execute"]), request.get("arguments")
    asked = arguments if isinstance(arguments, Mapping) else {}
    if command == "qom-get":
        if asked["path"] == "/machine" and asked["property"] == "type":
            return {"return": "pc-q35-7.2-machine"}
        return {"return": PROPERTIES[str(asked["property"])]}
    if command == "qom-list":
        if asked["path"] != "/objects":
            return {"error": {"class": "DeviceNotFound", "desc": "no such path"}}
        ram = {"name": "ram", "type": "child<memory-backend-file>"}
        return {"return": [{"name": "type", "type": "string"}, ram]}
    return {"return": ANSWERS[command]}


@pytest.fixture
def qmp(tmp_path: Path) -> Iterator[Path]:
    """A socket that answers as QEMU does."""
    path = tmp_path / "qmp.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            connection, _ = listener.accept()
            with connection, connection.makefile("rwb") as stream:
                stream.write(b'{"QMP": {}}\n')
                stream.flush()
                for line in stream:
                    stream.write(json.dumps(_answer(json.loads(line))).encode() + b"\n")
                    stream.flush()

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield path
        thread.join(5)


@pytest.fixture
def view(qmp: Path) -> MachineView:
    return read_machine(qmp)


def test_the_machine_is_read_back(view: MachineView) -> None:
    assert view.devices == DESCRIBED.devices
    assert view.settings == {
        "machine": "pc-q35-7.2-machine",
        "accelerator": "tcg",
        "cpu": "max-x86_64-cpu",
        "vcpus": 2,
        "memory": 256 << 20,
        "command-line": "quiet",
    }
    assert len(view.network) == 2


def outcomes(descriptor: VmDescriptor, view: MachineView) -> dict[str, Outcome]:
    return {finding.id: finding.outcome for finding in compare_machine(descriptor, view)}


GOOD = MachineView(
    {
        "machine": "pc-q35-7.2-machine",
        "accelerator": "tcg",
        "cpu": "max-x86_64-cpu",
        "vcpus": 2,
        "memory": 256 << 20,
        "command-line": "quiet",
    },
    DESCRIBED.devices,
    ("e0: mac=52:54:00:12:34:56",),
)


def test_the_described_machine_passes() -> None:
    assert outcomes(DESCRIBED, GOOD) == {
        "descriptor.machine": Outcome.PASS,
        "descriptor.devices": Outcome.PASS,
        "descriptor.network": Outcome.PASS,
    }


@pytest.mark.parametrize("setting", list(GOOD.settings))
def test_another_setting_is_found(setting: str) -> None:
    for other in ({**GOOD.settings, setting: "other"}, {setting: "nothing else is told"}):
        found = outcomes(DESCRIBED, replace(GOOD, settings=other))
        assert found["descriptor.machine"] is Outcome.FAIL


@pytest.mark.parametrize(
    ("devices", "word"),
    [
        ({**DESCRIBED.devices, "chardev/spy": "chardev-null"}, "chardev/spy (chardev-null)"),
        ({**DESCRIBED.devices, "tpm/tpm": "tpm-tis"}, "tpm/tpm (tpm-tis)"),
        ({}, "is gone"),
    ],
)
def test_another_set_of_devices_is_found(devices: dict[str, str], word: str) -> None:
    facts = {f.id: f for f in compare_machine(DESCRIBED, replace(GOOD, devices=devices))}
    assert facts["descriptor.devices"].outcome is Outcome.FAIL
    assert word in facts["descriptor.devices"].summary


@pytest.mark.parametrize("network", [(), (*GOOD.network, "wire: type=user")])
def test_another_network_is_found(network: tuple[str, ...]) -> None:
    found = outcomes(DESCRIBED, replace(GOOD, network=network))
    assert found["descriptor.network"] is Outcome.FAIL
