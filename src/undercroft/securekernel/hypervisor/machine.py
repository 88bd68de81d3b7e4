"""Is the machine that runs the one that was described?  Read back from QEMU, and compared.

Facts: ``descriptor.machine`` (machine type, accelerator, CPU model, number of vCPUs, memory,
command line), ``descriptor.devices`` and ``descriptor.network``.  QEMU cannot tell which bytes it
loaded as firmware, kernel and initrd: those are in the guest's own PCR 0, 4 and 9.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import Finding, JsonValue, Outcome
from undercroft.formats.descriptor import VmDescriptor
from undercroft.securekernel.hypervisor.qmp import QmpClient, QmpError

SOURCE = "the VM descriptor in PCR 18; QEMU docs/interop/qmp-spec.txt"
_CONTAINERS = {
    "peripheral": "/machine/peripheral",
    "peripheral-anon": "/machine/peripheral-anon",
    "object": "/objects",
    "chardev": "/chardevs",
}


@dataclass(frozen=True, slots=True)
class MachineView:
    """What QEMU says it runs, in the descriptor's terms.

    ``settings`` are the descriptor's fields by name; ``network`` is the monitor's own text, a
    line for each network device or backend.
    """

    settings: Mapping[str, JsonValue]
    devices: Mapping[str, str]
    network: tuple[str, ...]


def read_machine(qmp: Path, *, timeout: float = 10.0) -> MachineView:
    """Ask QEMU what it runs.  Raises GuestGone, EnvironmentFault."""
    with QmpClient(qmp, timeout=timeout) as session:
        devices = dict(_pci(session))
        for kind, path in _CONTAINERS.items():
            devices |= {f"{kind}/{name}": what for name, what in _children(session, path)}
        devices |= _blocks(session)
        devices |= _tpms(session)
        network = tuple(filter(None, map(str.strip, session.monitor("info network").split("\n"))))
        return MachineView(_settings(session), devices, network)


def _settings(session: QmpClient) -> dict[str, JsonValue]:
    cpus = _maps(session.execute("query-cpus-fast"))
    models = {_type(session, str(cpu.get("qom-path"))) for cpu in cpus}
    kvm = session.execute("query-kvm")
    memory = session.execute("query-memory-size-summary")
    sizes = list(memory.values()) if isinstance(memory, Mapping) else []
    return {
        "machine": _type(session, "/machine"),
        "accelerator": "kvm" if isinstance(kvm, Mapping) and kvm.get("enabled") else "tcg",
        "cpu": ", ".join(sorted(models)),
        "vcpus": len(cpus),
        "memory": sum(size for size in sizes if isinstance(size, int)),
        "command-line": _property(session, "/machine", "append"),
    }


def _property(session: QmpClient, path: str, name: str) -> str:
    try:
        return str(session.execute("qom-get", {"path": path, "property": name}))
    except QmpError:
        return ""


def _type(session: QmpClient, path: str) -> str:
    return _property(session, path, "type")


def _maps(answer: JsonValue) -> list[Mapping[str, JsonValue]]:
    return (
        [each for each in answer if isinstance(each, Mapping)] if isinstance(answer, list) else []
    )


def _children(session: QmpClient, path: str) -> Iterator[tuple[str, str]]:
    """Yield the name and type of each object below ``path``."""
    try:
        answer = session.execute("qom-list", {"path": path})
    except QmpError:
        return
    for entry in _maps(answer):
        kind = str(entry.get("type"))
        if kind.startswith("child<"):
            yield str(entry.get("name")), kind.removeprefix("child<").removesuffix(">")


def _pci(session: QmpClient) -> Iterator[tuple[str, str]]:
    """Yield every PCI function as bus:slot.function with its vendor and device."""
    for bus in _maps(session.execute("query-pci")):
        waiting = _maps(bus.get("devices"))
        while waiting:
            device = waiting.pop()
            at = [device.get(key) for key in ("bus", "slot", "function")]
            numbers = [each if isinstance(each, int) else -1 for each in at]
            ids = device.get("id")
            known = ids if isinstance(ids, Mapping) else {}
            what = [known.get("vendor"), known.get("device")]
            vendor, product = (each if isinstance(each, int) else 0 for each in what)
            place = "{:02x}:{:02x}.{:x}".format(*numbers)
            yield f"pci/{place}", f"{vendor:04x}:{product:04x}"
            bridge = device.get("pci_bridge")
            waiting += _maps(bridge.get("devices")) if isinstance(bridge, Mapping) else []


def _blocks(session: QmpClient) -> dict[str, str]:
    """Return the drives with their formats, and block nodes that belong to no drive."""
    devices: dict[str, str] = {}
    for drive in _maps(session.execute("query-block")):
        name = str(drive.get("device") or drive.get("qdev"))
        inserted = drive.get("inserted")
        medium = inserted if isinstance(inserted, Mapping) else {}
        devices[f"block/{name}"] = _block(medium)
    for node in _maps(session.execute("query-named-block-nodes")):
        name = str(node.get("node-name"))
        if not name.startswith("#"):  # QEMU's own names; those are a drive's
            devices[f"block-node/{name}"] = _block(node)
    return devices


def _block(node: Mapping[str, JsonValue]) -> str:
    return f"{node.get('drv', 'empty')} {'read-only' if node.get('ro') else 'read-write'}"


def _tpms(session: QmpClient) -> dict[str, str]:
    return {
        f"tpm/{tpm.get('id')}": str(tpm.get("model")) for tpm in _maps(session.execute("query-tpm"))
    }


def compare_machine(descriptor: VmDescriptor, view: MachineView) -> tuple[Finding, ...]:
    """Return the facts about how ``view`` differs from what was described."""
    return (
        _compare_settings(descriptor, view),
        _compare_devices(descriptor, view),
        _compare_network(descriptor, view),
    )


def _compare_settings(descriptor: VmDescriptor, view: MachineView) -> Finding:
    expected: dict[str, JsonValue] = {
        "machine": descriptor.machine,
        "accelerator": descriptor.accelerator,
        "cpu": descriptor.cpu,
        "vcpus": descriptor.vcpus,
        "memory": descriptor.memory,
        "command-line": descriptor.command_line,
    }
    wrong = [
        name for name, value in expected.items() if not _same(name, value, view.settings.get(name))
    ]
    details: dict[str, JsonValue] = {
        "expected": {name: expected[name] for name in wrong},
        "found": {name: view.settings.get(name) for name in wrong},
    }
    if wrong:
        what = f"the machine is not as it was described: {', '.join(wrong)}"
        return Finding("descriptor.machine", Outcome.FAIL, what, details, SOURCE)
    what = f"{descriptor.machine} with {descriptor.vcpus} vCPUs, as described"
    return Finding("descriptor.machine", Outcome.PASS, what, {}, SOURCE)


def _same(name: str, described: JsonValue, found: JsonValue) -> bool:
    """Compare one setting; QEMU names types in its own way (``pc-q35-7.2-machine``)."""
    if name == "machine":
        return f"pc-{str(described).partition(',')[0]}-" in str(found)
    if name == "cpu":
        return str(found) == f"{str(described).partition(',')[0]}-x86_64-cpu"
    return described == found


def _compare_devices(descriptor: VmDescriptor, view: MachineView) -> Finding:
    described, found = descriptor.devices.items(), view.devices.items()
    more = [f"{place} ({what})" for place, what in sorted(found - described)]
    gone = [f"{place} ({what})" for place, what in sorted(described - found)]
    details: dict[str, JsonValue] = {
        "appeared": list[JsonValue](more),
        "disappeared": list[JsonValue](gone),
        "devices": len(found),
    }
    if more or gone:
        words = [f"{', '.join(more)} appeared" if more else "", f"{', '.join(gone)} is gone"]
        what = "; ".join(words if gone else words[:1]).removeprefix("; ")
        return Finding("descriptor.devices", Outcome.FAIL, what, details, SOURCE)
    what = f"the {len(found)} devices are those that were described"
    return Finding("descriptor.devices", Outcome.PASS, what, details, SOURCE)


def _compare_network(descriptor: VmDescriptor, view: MachineView) -> Finding:
    """Every line of the monitor's list must have one of the described MAC addresses."""
    unknown = [line for line in view.network if not any(mac in line for mac in descriptor.network)]
    missing = [mac for mac in descriptor.network if not any(mac in line for line in view.network)]
    details: dict[str, JsonValue] = {
        "appeared": list[JsonValue](unknown),
        "disappeared": list[JsonValue](missing),
    }
    if unknown or missing:
        what = "the network is not as it was described"
        return Finding("descriptor.network", Outcome.FAIL, what, details, SOURCE)
    what = f"{len(descriptor.network) or 'no'} network devices, as described"
    return Finding("descriptor.network", Outcome.PASS, what, {}, SOURCE)
