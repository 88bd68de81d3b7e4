"""A few QEMU Machine Protocol commands, one connection each (QEMU docs/interop/qmp-spec.txt)."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

from undercroft.base import EnvironmentFault

TIMEOUT_S = 10.0
_LINE_LIMIT = 1 << 20


def _read_line(stream: Any) -> dict[str, Any]:
    line = stream.readline(_LINE_LIMIT)
    if not line.endswith(b"\n"):
        raise ConnectionError("QEMU closed the connection")
    message = json.loads(line)
    if not isinstance(message, dict):
        raise ConnectionError("QEMU did not answer with an object")
    return message


def execute(path: Path, command: str, *, timeout_s: float = TIMEOUT_S) -> Any:
    """Run ``command`` over the QMP socket at ``path`` and return what it returned.

    Raises EnvironmentFault if QEMU does not answer in time or refuses.
    """
    try:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            with connection.makefile("rwb") as stream:
                _read_line(stream)  # the greeting
                for name in ("qmp_capabilities", command):
                    stream.write(json.dumps({"execute": name}).encode() + b"\n")
                    stream.flush()
                    answer = _read_line(stream)
                    while "event" in answer:
                        answer = _read_line(stream)
    except (OSError, ValueError) as error:
        raise EnvironmentFault(f"QEMU does not answer {command}", where=str(path)) from error
    if "return" not in answer:
        raise EnvironmentFault(f"QEMU refused {command}", where=str(path), got=answer.get("error"))
    return answer["return"]
