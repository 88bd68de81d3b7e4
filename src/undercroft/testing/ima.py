"""A Linux kernel's IMA, simulated: it measures, keeps both lists and extends PCR banks.

Written against ``security/integrity/ima/`` and on purpose not with :mod:`undercroft.formats.ima`,
so that a mistake there is not made here as well.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from typing import Literal

from undercroft.base import HashAlgorithm, PcrBank

_FORMATS = {
    "ima": "d|n",
    "ima-ng": "d-ng|n-ng",
    "ima-sig": "d-ng|n-ng|sig",
    "ima-ngv2": "d-ngv2|n-ng",
    "ima-sigv2": "d-ngv2|n-ng|sig",
    "ima-buf": "d-ng|n-ng|buf",
    "ima-modsig": "d-ng|n-ng|sig|d-modsig|modsig",
    "evm-sig": "d-ng|n-ng|evmsig|xattrnames|xattrlengths|xattrvalues|iuid|igid|imode",
}
_STRINGS = {"n", "n-ng", "xattrnames"}
_DIGESTS = {"d-ng", "d-ngv2", "d-modsig"}
_INTEGERS = {"iuid": 4, "igid": 4, "imode": 2}


class SimulatedIma:
    """IMA of one boot.  ``boot`` are the PCRs 0 to 9 of each bank that the TPM has.

    ``template`` is a template's name or a format; ``padded`` are banks that the kernel extends
    with padded SHA-1.  ``pcr`` is where entries go (CONFIG_IMA_MEASURE_PCR_IDX).
    """

    def __init__(
        self,
        boot: Iterable[PcrBank],
        *,
        template: str = "ima-ng",
        hash_name: str = "sha256",
        order: Literal["little", "big"] = "little",
        padded: Iterable[HashAlgorithm] = (),
        pcr: int = 10,
    ) -> None:
        self.boot = {bank.algorithm: bank for bank in boot}
        self.template = template
        self.hash_name = hash_name
        self.order: Literal["little", "big"] = order
        self.padded = frozenset(padded)
        self.pcr = pcr
        self.values: dict[tuple[HashAlgorithm, int], bytes] = {}
        self._binary = bytearray()
        self._ascii = bytearray()
        self.count = 0

    @property
    def binary(self) -> bytes:
        """The list as ``binary_runtime_measurements`` gives it."""
        return bytes(self._binary)

    @property
    def ascii(self) -> bytes:
        """The list as ``ascii_runtime_measurements`` gives it."""
        return bytes(self._ascii)

    def boot_aggregate(self, pcrs: Iterable[int] | None = None) -> None:
        """Add the boot_aggregate entry, in the IMA hash's bank if there is one, else SHA-256's."""
        wanted = "sha1" if self.template == "ima" else self.hash_name
        names = {algorithm.label: algorithm for algorithm in self.boot}
        algorithm = names.get(wanted) or names.get("sha256") or names["sha1"]
        if pcrs is None:
            pcrs = range(8) if algorithm is HashAlgorithm.SHA1 else range(10)
        values = self.boot[algorithm].values
        digest = algorithm.hash(*(values[pcr] for pcr in pcrs))
        self.entry("boot_aggregate", digest, name=algorithm.label)

    def measure(
        self,
        path: str | bytes,
        content: bytes,
        fields: Mapping[str, bytes] | None = None,
        *,
        pcr: int | None = None,
    ) -> None:
        """Measure a file with this content; ``fields`` are the further fields of the template."""
        name = "sha1" if self.template == "ima" else self.hash_name
        self.entry(path, hashlib.new(name, content).digest(), fields, name=name, pcr=pcr)

    def buffer(self, event: str | bytes, data: bytes) -> None:
        """Measure a kernel buffer (always with the template ima-buf)."""
        digest = hashlib.new(self.hash_name, data).digest()
        self.entry(event, digest, {"buf": data}, template="ima-buf")

    def violation(self, path: str | bytes) -> None:
        """Record a violation (ToMToU or open_writers: the list does not say which)."""
        size = 20 if self.template == "ima" else hashlib.new(self.hash_name).digest_size
        self.entry(path, bytes(size), violation=True)

    def entry(
        self,
        path: str | bytes,
        digest: bytes,
        fields: Mapping[str, bytes] | None = None,
        *,
        name: str | None = None,
        template: str | None = None,
        violation: bool = False,
        pcr: int | None = None,
    ) -> None:
        """Add one entry with this digest, in the algorithm ``name``, and extend every bank."""
        template = template or self.template
        pcr = self.pcr if pcr is None else pcr
        event = (path.encode() if isinstance(path, str) else path).replace(b" ", b"_")
        values = self._values(template, event, name or self.hash_name, digest, fields or {})
        if template == "ima":
            hashed = digest + event.ljust(256, b"\0")
            stored = digest + self._u32(len(event)) + event
        else:
            hashed = b"".join(self._u32(len(value)) + value for _, value in values)
            stored = self._u32(len(hashed)) + hashed
        listed = bytes(20) if violation else hashlib.sha1(hashed).digest()
        head = self._u32(pcr) + listed + self._u32(len(template)) + template.encode()
        self._binary += head + stored
        words = [b"%2d" % pcr, listed.hex().encode(), template.encode()]
        self._ascii += b" ".join(words + [self._shown(*pair) for pair in values]) + b"\n"
        self.count += 1
        for algorithm in self.boot:
            self._extend(algorithm, pcr, hashed, violation)

    def bank(self, algorithm: HashAlgorithm) -> PcrBank:
        """Return the bank as a quote would prove it: boot PCRs and IMA's."""
        measured = {pcr: v for (bank, pcr), v in self.values.items() if bank is algorithm}
        start = {self.pcr: bytes(algorithm.size)}
        return PcrBank(algorithm, {**start, **self.boot[algorithm].values, **measured})

    def _u32(self, value: int) -> bytes:
        return value.to_bytes(4, self.order)

    def _values(
        self, template: str, event: bytes, name: str, digest: bytes, given: Mapping[str, bytes]
    ) -> list[tuple[str, bytes]]:
        made = {
            "d": digest,
            "n": event + b"\0",
            "n-ng": event + b"\0",
            "d-ng": name.encode() + b":\0" + digest,
            "d-ngv2": b"ima:" + name.encode() + b":\0" + digest,
        }
        fields = _FORMATS.get(template, template).split("|")
        return [(field, {**made, **given}.get(field, b"")) for field in fields]

    def _shown(self, field: str, value: bytes) -> bytes:
        if not value:
            return b""
        if field in _STRINGS:
            return value[:-1]
        if field in _DIGESTS:
            prefix, _, digest = value.partition(b"\0")
            return prefix + digest.hex().encode()
        if field in _INTEGERS:
            return b"%d" % int.from_bytes(value, self.order)
        return value.hex().encode()

    def _extend(self, algorithm: HashAlgorithm, pcr: int, hashed: bytes, violation: bool) -> None:
        padded = algorithm in self.padded
        if violation:
            digest = b"\xff" * (20 if padded else algorithm.size)
        else:
            digest = hashlib.sha1(hashed).digest() if padded else algorithm.hash(hashed)
        before = self.values.get((algorithm, pcr), bytes(algorithm.size))
        extended = algorithm.hash(before, digest.ljust(algorithm.size, b"\0"))
        self.values[algorithm, pcr] = extended


def boot_pcrs(
    *algorithms: HashAlgorithm, seed: bytes = b"boot", pcrs: Iterable[int] = range(10)
) -> list[PcrBank]:
    """Return made-up boot PCRs, different for each ``seed``."""
    return [PcrBank(a, {i: a.hash(seed, bytes([i])) for i in pcrs}) for a in algorithms]
