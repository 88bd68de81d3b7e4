"""What a verifier remembers of each attestation key: the TPM's clock and counters.

Evidence that is older than what was accepted before is refused (``quote.reset-count``,
``quote.clock`` ...), so that a vTPM whose state was rolled back, or a clone of it, cannot speak
for the guest.  One small JSON file for each key, named by the key's Name; it goes forward only.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats import strict_json
from undercroft.verify.quote import AcceptedState

FORMAT = "undercroft.accepted-state/1"
NAME = "accepted state"
MAX_SIZE = 1 << 16


class _Wire(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: str
    guest: str
    ak_name: str
    clock: int
    reset_count: int
    restart_count: int
    firmware_version: int


def encode_accepted(guest: str, state: AcceptedState) -> bytes:
    """Write the state of ``guest``'s last accepted evidence as a file."""
    return strict_json.encode(
        _Wire(
            FORMAT,
            guest,
            state.ak_name.hex(),
            state.clock,
            state.reset_count,
            state.restart_count,
            state.firmware_version,
        )
    )


def parse_accepted(data: bytes) -> AcceptedState:
    """Parse such a file.  Raises FormatError."""
    wire = strict_json.parse(data, _Wire, NAME, limit=MAX_SIZE)
    if wire.format != FORMAT:
        raise FormatError(
            NAME, 0, "another format or version", expected=FORMAT, got=wire.format[:80]
        )
    try:
        name = strict_json.unhex(wire.ak_name)
    except ValueError as error:
        raise FormatError(NAME, 0, str(error)) from error
    return AcceptedState(
        name, wire.clock, wire.reset_count, wire.restart_count, wire.firmware_version
    )


@dataclass(frozen=True, slots=True)
class AcceptedStates:
    """The states under one folder, which is made when the first is kept."""

    folder: Path

    def path(self, ak_name: bytes) -> Path:
        """Return where the state of the key with this Name is kept."""
        return self.folder / f"{ak_name.hex()}.json"

    def load(self, ak_name: bytes) -> AcceptedState | None:
        """Return the state of a key, None if none was accepted.

        Raises FormatError or EnvironmentFault for a file that cannot be read: nothing is known
        then, which is no reason to accept anything.
        """
        path = self.path(ak_name)
        try:
            return parse_accepted(path.read_bytes())
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EnvironmentFault(f"cannot read: {error.strerror}", where=str(path)) from error

    def accept(self, guest: str, state: AcceptedState) -> None:
        """Keep ``state``, unless a later one of the same key is kept already."""
        path = self.path(state.ak_name)
        with self._locked():
            kept = self.load(state.ak_name)
            if kept is not None and _order(kept) >= _order(state):
                return
            new = path.with_suffix(".new")
            with new.open("wb") as stream:
                stream.write(encode_accepted(guest, state))
                stream.flush()
                os.fsync(stream.fileno())
            new.replace(path)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def _order(state: AcceptedState) -> tuple[int, int, int]:
    return state.reset_count, state.restart_count, state.clock
