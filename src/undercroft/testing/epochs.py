"""A chain of epochs as the secure kernel makes it, for tests: honest, or with one thing changed."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from undercroft.formats.evidence.interval import (
    FIRST,
    Change,
    CoveredRange,
    Epoch,
    Sampling,
    encode_epoch,
    epoch_digest,
)

START = 1_800_000_000_000_000_000
LENGTH = 10_000_000_000
TEXT, RODATA = "kernel.text", "kernel.rodata"


def seed(sequence: int) -> bytes:
    """Return the seed of an epoch."""
    return hashlib.sha256(b"seed" + bytes((sequence,))).digest()


def lawful_change(time: int) -> Change:
    """Return a static key's branch that was patched."""
    return Change(
        time=time, range=TEXT, paddr=0x1001234, vaddr=0xFFFF_FFFF_8100_1234,
        symbol="enqueue_entity+0x11d", rule="jump-label",
        before=bytes.fromhex("0f1f440000"), after=bytes.fromhex("e912000000"),
        thread="CPU 0/KVM (77)", writes=3, open_ns=180_000, lawful=True, landed=True, reason="",
    )  # fmt: skip


def honest_epoch(sequence: int) -> Epoch:
    """Return one epoch of a quiet guest; in the second of each chain a static key is patched."""
    changed = sequence >= 2
    t0 = START + (sequence - 1) * LENGTH
    return Epoch(
        session=bytes(range(16)),
        sequence=sequence,
        previous=FIRST if sequence == 1 else bytes(31) + b"\1",
        t0=t0,
        t1=t0 + LENGTH,
        mode="observe",
        cause="time",
        ranges=(
            CoveredRange(
                TEXT,
                ((0xFFFF_FFFF_8100_0000, 0x1000000, 0xE00000),),
                hashlib.sha256(b"new" if changed else b"old").digest(),
                2 if changed else 0,
            ),
            CoveredRange(RODATA, ((0, 0x2000000, 0x1000),), hashlib.sha256(b"ro").digest(), 0),
        ),
        channels=("write-trap:userfaultfd",),
        uncovered=(),
        blind=(),
        changes=(lawful_change(t0 + 1000),) if sequence == 2 else (),
        unsettled=0,
        writes=3 if sequence == 2 else 0,
        sampling=Sampling(
            hashlib.sha256(seed(sequence)).digest(),
            seed(sequence - 1) if sequence > 1 else b"",
            1_000_000_000,
            (t0 + 5,),
        ),
    )


def chained(epochs: list[Epoch]) -> tuple[list[bytes], bytes]:
    """Link the epochs by digest; return them encoded, and the head."""
    encoded: list[bytes] = []
    for epoch in epochs:
        previous = epoch_digest(encoded[-1]) if encoded else epoch.previous
        encoded.append(encode_epoch(replace(epoch, previous=previous)))
    return encoded, epoch_digest(encoded[-1])


def honest_chain(length: int = 4) -> list[Epoch]:
    """Return ``length`` epochs, not yet linked."""
    return [honest_epoch(number) for number in range(1, length + 1)]
