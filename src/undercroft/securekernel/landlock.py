"""Give up the file system but for a few folders (Landlock, landlock(7)).

For processes that look at no other process: one in a Landlock domain may not (see ``confine``).
A domain is for good, and holds for this thread and those that it starts: call it before any.

Source: include/uapi/linux/landlock.h; Documentation/userspace-api/landlock.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import struct
from collections.abc import Iterable
from pathlib import Path

from undercroft.base import EnvironmentFault

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
_CREATE_RULESET_VERSION = 1
_RULE_PATH_BENEATH = 1
_PR_SET_NO_NEW_PRIVS = 38

_READ = 1 << 2 | 1 << 3  # READ_FILE, READ_DIR
_RIGHTS_OF_ABI = {1: 13, 2: 14, 3: 15, 4: 15, 5: 16}
"""How many LANDLOCK_ACCESS_FS rights each version has, by bit from 0; later ones have the last."""
_WRITE = 1 << 1 | 1 << 5 | 1 << 8 | 1 << 9 | 1 << 13 | 1 << 14
"""WRITE_FILE, REMOVE_FILE, MAKE_REG, MAKE_SOCK, REFER, TRUNCATE."""
_NET = 1 << 0 | 1 << 1  # BIND_TCP, CONNECT_TCP: ABI 4
_SCOPE = 1 << 0 | 1 << 1  # ABSTRACT_UNIX_SOCKET, SIGNAL: ABI 6

_libc = ctypes.CDLL(None, use_errno=True)


def version() -> int:
    """Return Landlock's ABI version; 0 where the kernel has none, or has it switched off."""
    found = _libc.syscall(_CREATE_RULESET, None, 0, _CREATE_RULESET_VERSION)
    return max(0, int(found))


def restrict(readable: Iterable[Path], writable: Iterable[Path]) -> None:
    """Leave this thread only reading below ``readable`` and files below ``writable``.

    Nothing may be executed any more; no TCP, no abstract sockets, no signals to processes outside,
    where the kernel's Landlock knows of these.  A path that does not exist is passed over.  Raises
    EnvironmentFault if the kernel refuses; then nothing may be assumed to be given up.
    """
    abi = version()
    if abi == 0:
        raise EnvironmentFault("the kernel has no Landlock", remedy="a kernel with lsm=landlock,…")
    handled = (1 << _RIGHTS_OF_ABI.get(abi, 16)) - 1
    attributes = struct.pack("<Q", handled)
    if abi >= 4:
        attributes += struct.pack("<Q", _NET)
    if abi >= 6:
        attributes += struct.pack("<Q", _SCOPE)
    ruleset = _call(_CREATE_RULESET, attributes, len(attributes), 0)
    try:
        for path in readable:
            _allow(ruleset, path, _READ)
        for path in writable:
            _allow(ruleset, path, (_READ | _WRITE) & handled)
        if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0:
            raise EnvironmentFault(f"prctl: {os.strerror(ctypes.get_errno())}")
        _call(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _allow(ruleset: int, path: Path, access: int) -> None:
    with contextlib.suppress(FileNotFoundError):
        folder = os.open(path, os.O_PATH | os.O_CLOEXEC)
        try:
            rule = struct.pack("<Qi", access, folder)  # struct landlock_path_beneath_attr: packed
            _call(_ADD_RULE, ruleset, _RULE_PATH_BENEATH, rule, 0)
        finally:
            os.close(folder)


def _call(number: int, *arguments: int | bytes) -> int:
    result = int(_libc.syscall(number, *arguments))
    if result < 0:
        raise EnvironmentFault(f"Landlock: {os.strerror(ctypes.get_errno())}", where=f"{number}")
    return result
