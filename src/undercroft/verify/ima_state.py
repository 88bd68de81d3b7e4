"""What one replay of a measurement list leaves for the next: a few hundred bytes.

The state is ours: it says how far a list was followed and with which result.  It belongs to one
boot (resetCount and boot_aggregate), and it is only as good as the place it is kept in; bytes
from anywhere else must not be taken for it.
"""

from __future__ import annotations

from dataclasses import dataclass

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.formats.reader import BoundedReader

FORMAT = "IMA replay state"
_MAGIC = b"UCIMA\x01"
RULES = ("template-hash", "padded-sha1", "padded-sha1-full-violation")


@dataclass(frozen=True, slots=True)
class ImaState:
    """Where the replay of a boot's list stands.

    ``rule`` is the label of the extend rule that fits this boot; ``count`` entries, ``offset``
    bytes of the binary list, were vouched for by a quote; ``values`` are the PCRs after them, by
    ascending index.  ``boot_aggregate`` is the list's first entry.
    """

    algorithm: HashAlgorithm
    rule: str
    reset_count: int
    boot_aggregate: FileDigest
    count: int
    offset: int
    values: tuple[tuple[int, bytes], ...]

    def encode(self) -> bytes:
        """Return the state as bytes, for :func:`parse_state`."""
        aggregate = self.boot_aggregate
        parts = [
            _MAGIC,
            self.algorithm.alg_id.to_bytes(2, "big"),
            bytes([RULES.index(self.rule)]),
            self.reset_count.to_bytes(4, "big"),
            _sized(aggregate.name.encode()),
            _sized(aggregate.value),
            self.count.to_bytes(8, "big"),
            self.offset.to_bytes(8, "big"),
            bytes([len(self.values)]),
            *(bytes([index]) + value for index, value in self.values),
        ]
        return b"".join(parts)


def _sized(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def parse_state(data: bytes) -> ImaState:
    """Parse what :meth:`ImaState.encode` wrote.  Raises FormatError."""
    reader = BoundedReader(data, FORMAT, order="big")
    if reader.take(len(_MAGIC), "the mark") != _MAGIC:
        raise FormatError(FORMAT, 0, "not a state of this version", expected=_MAGIC)
    algorithm = HashAlgorithm.from_alg_id(reader.u16("the algorithm"))
    rule = reader.u8("the rule")
    if algorithm is None or rule >= len(RULES):
        raise reader.fail("no such bank or rule")
    reset_count = reader.u32("resetCount")
    aggregate = _aggregate(reader)
    count, offset = reader.u64("the count"), reader.u64("the offset")
    values: list[tuple[int, bytes]] = []
    for _ in range(reader.u8("the number of PCRs")):
        index = reader.u8("a PCR index")
        if index >= PCR_COUNT or (values and index <= values[-1][0]):
            raise reader.fail("PCR indices are not ascending below 24", got=index)
        values.append((index, reader.take(algorithm.size, "a PCR value")))
    reader.finish()
    if not count or not values:
        raise reader.fail("a state with no entry or no PCR")
    return ImaState(algorithm, RULES[rule], reset_count, aggregate, count, offset, tuple(values))


def _aggregate(reader: BoundedReader) -> FileDigest:
    name = reader.sized(1, "boot_aggregate's algorithm")
    value = reader.sized(1, "boot_aggregate")
    # Without a name it is the 20 bytes of the original template, which are SHA-1.
    algorithm = LinuxHash.from_name(name or b"sha1")
    if algorithm is None or algorithm.size != len(value):
        raise reader.fail("boot_aggregate is not a digest that we know")
    return FileDigest("ima", name.decode(), algorithm, value)
