"""What one replay of a measurement list leaves for the next: a few hundred bytes.

The state is ours: it says how far a list was followed and with which result.  It belongs to one
boot (resetCount and boot_aggregate), and it is only as good as the place it is kept in; bytes
from anywhere else must not be taken for it.
"""

from __future__ import annotations

import enum

import msgspec

from undercroft.base import PCR_COUNT, FormatError, HashAlgorithm
from undercroft.formats.ima import FileDigest, LinuxHash

FORMAT = "IMA replay state"


class ExtendRule(enum.Enum):
    """What the kernel extends a bank with.  All but the first are quirks, named in the result."""

    TEMPLATE_HASH = "template-hash"
    """The bank's own hash of the template data; 0xff bytes for a violation."""
    PADDED_SHA1 = "padded-sha1"
    """SHA-1 padded with zeros, 0xff padded likewise: kernels before 5.8 in every other bank,
    later ones in a bank whose algorithm they cannot name ("unmapped TPM algorithms")."""
    PADDED_SHA1_FULL_VIOLATION = "padded-sha1-full-violation"
    """SHA-1 padded with zeros, but 0xff throughout for a violation: a bank whose algorithm the
    kernel can name but had not loaded when IMA started (``ima_algo_array[i].tfm`` is NULL)."""


class ImaState(msgspec.Struct, frozen=True):
    """Where the replay of a boot's list stands.

    ``rule`` is the extend rule that fits this boot; ``count`` entries, ``offset`` bytes of the
    binary list, were vouched for by a quote; ``values`` are the PCRs after them, by ascending
    index.  ``boot_aggregate`` is what the list's first entry says.
    """

    algorithm: HashAlgorithm
    rule: ExtendRule
    reset_count: int
    boot_aggregate: FileDigest
    count: int
    offset: int
    values: tuple[tuple[int, bytes], ...]

    def same_boot(self, other: ImaState) -> bool:
        """Return whether both are states of one boot's list, replayed over one bank."""
        return (self.reset_count, self.boot_aggregate, self.algorithm, self.rule) == (
            other.reset_count,
            other.boot_aggregate,
            other.algorithm,
            other.rule,
        )

    def to_wire(self) -> WireState:
        """Return the state as a value that msgspec writes."""
        aggregate = self.boot_aggregate
        return WireState(
            self.algorithm.alg_id,
            self.rule.value,
            self.reset_count,
            aggregate.name,
            aggregate.value,
            self.count,
            self.offset,
            self.values,
        )

    def encode(self) -> bytes:
        """Return the state as bytes, for :func:`parse_state`."""
        return _ENCODER.encode(self.to_wire())


class WireState(msgspec.Struct, array_like=True, forbid_unknown_fields=True, tag="ima-state/1"):
    """An :class:`ImaState` as MessagePack has it."""

    algorithm: int
    rule: str
    reset_count: int
    aggregate_name: str
    aggregate: bytes
    count: int
    offset: int
    values: tuple[tuple[int, bytes], ...]


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(WireState)
_RULES = {rule.value: rule for rule in ExtendRule}


def parse_state(data: bytes) -> ImaState:
    """Parse what :meth:`ImaState.encode` wrote, byte for byte.  Raises FormatError."""
    try:
        wire = _DECODER.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise FormatError(FORMAT, 0, f"not a state: {error}") from None
    if _ENCODER.encode(wire) != data:
        raise FormatError(FORMAT, 0, "not written in the one way that it is written")
    return state_of(wire)


def state_of(wire: WireState) -> ImaState:
    """Return the checked state.  Raises FormatError."""
    algorithm = HashAlgorithm.from_alg_id(wire.algorithm)
    rule = _RULES.get(wire.rule)
    if algorithm is None or rule is None:
        raise FormatError(FORMAT, 0, "no such bank or rule")
    if not (0 <= wire.reset_count < 1 << 32 and wire.count > 0 <= wire.offset and wire.values):
        raise FormatError(FORMAT, 0, "a number is out of its range")
    last = -1
    for index, value in wire.values:
        if not last < index < PCR_COUNT or len(value) != algorithm.size:
            raise FormatError(FORMAT, 0, "PCRs are not ascending values of the bank", got=index)
        last = index
    # Without a name it is the 20 bytes of the original template, which are SHA-1.
    linux_hash = LinuxHash.from_name(wire.aggregate_name.encode() or b"sha1")
    if linux_hash is None or linux_hash.size != len(wire.aggregate):
        raise FormatError(FORMAT, 0, "boot_aggregate is not a digest that we know")
    aggregate = FileDigest("ima", wire.aggregate_name, linux_hash, wire.aggregate)
    return ImaState(
        algorithm, rule, wire.reset_count, aggregate, wire.count, wire.offset, wire.values
    )
