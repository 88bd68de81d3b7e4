"""Where the saved contexts of the launch's attestation keys outlive the multiplexer's process.

A context is encrypted and signed by the TPM that saved it and good for nothing elsewhere; the key
in it can be used at the secure kernel's locality only.  The file is its owner's alone all the same.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import JsonValue
from undercroft.securekernel.vtpm.keys import KeyType


@dataclass(frozen=True, slots=True)
class LaunchedKey:
    """An attestation key of the platform hierarchy: TPMT_PUBLIC, Name and TPMS_CONTEXT bytes."""

    public: bytes
    name: bytes
    context: bytes

    def as_json(self) -> dict[str, JsonValue]:
        """Return the fields in hex."""
        return {
            "public": self.public.hex(),
            "name": self.name.hex(),
            "context": self.context.hex(),
        }


class KeyFile:
    """Keys by type, as JSON in one file."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def load(self) -> dict[KeyType, LaunchedKey]:
        """Return the keys of the file; none if there is no file or it is not one of ours.

        Nothing rests on them: a context that is not this TPM's does not load.
        """
        try:
            content = json.loads(self._path.read_text())
            return {
                KeyType(name): LaunchedKey(
                    bytes.fromhex(key["public"]),
                    bytes.fromhex(key["name"]),
                    bytes.fromhex(key["context"]),
                )
                for name, key in content.items()
            }
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return {}

    def save(self, keys: dict[KeyType, LaunchedKey]) -> None:
        """Replace the file."""
        draft = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            json.dump({kind.value: key.as_json() for kind, key in keys.items()}, file)
        draft.replace(self._path)
