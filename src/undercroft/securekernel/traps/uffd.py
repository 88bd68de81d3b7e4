"""userfaultfd in write-protect mode: the ioctls and the messages, typed.

Sources: include/uapi/linux/userfaultfd.h (Linux 6.1), ioctl_userfaultfd(2).
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from dataclasses import dataclass

from undercroft.base import EnvironmentFault, FormatError
from undercroft.securekernel.guest import GuestGone

SYSCALL_USERFAULTFD = 323
FLAGS = os.O_CLOEXEC | os.O_NONBLOCK

_API = 0xAA
_UFFDIO_API = 0xC018AA3F
_UFFDIO_REGISTER = 0xC020AA00
_UFFDIO_UNREGISTER = 0x8010AA01
_UFFDIO_WAKE = 0x8010AA02
_UFFDIO_WRITEPROTECT = 0xC018AA06
IOC_NEW = 0xAA00
"""USERFAULTFD_IOC_NEW on /dev/userfaultfd."""

_REGISTER_MODE_WP = 1 << 1
_WRITEPROTECT_MODE_WP = 1 << 0
_WRITEPROTECT_MODE_DONTWAKE = 1 << 1

FEATURE_PAGEFAULT_FLAG_WP = 1 << 0
FEATURE_EVENT_REMAP = 1 << 2
FEATURE_EVENT_REMOVE = 1 << 3
FEATURE_EVENT_UNMAP = 1 << 6
FEATURE_THREAD_ID = 1 << 8
FEATURE_EXACT_ADDRESS = 1 << 11
FEATURE_WP_HUGETLBFS_SHMEM = 1 << 12
FEATURE_WP_UNPOPULATED = 1 << 13

EVENTS = FEATURE_EVENT_REMAP | FEATURE_EVENT_REMOVE | FEATURE_EVENT_UNMAP
"""Linux 4.11: the process tells before it discards, moves or unmaps pages, and waits for us."""

REQUIRED = (
    FEATURE_PAGEFAULT_FLAG_WP
    | FEATURE_WP_HUGETLBFS_SHMEM
    | FEATURE_THREAD_ID
    | FEATURE_EXACT_ADDRESS
    | EVENTS
)
"""Linux 5.19 has them all; without them a write to shared RAM goes unseen."""
WANTED = FEATURE_WP_UNPOPULATED
"""Linux 6.4: pages that are not there yet are protected too."""

_MESSAGE = struct.Struct("<BBHIQQQ")
_EVENT_PAGEFAULT = 0x12
_EVENT_REMAP, _EVENT_REMOVE, _EVENT_UNMAP = 0x14, 0x15, 0x16
_EVENT_NAMES = {_EVENT_REMAP: "moved", _EVENT_REMOVE: "discarded", _EVENT_UNMAP: "unmapped"}
_PAGEFAULT_FLAG_WP = 1 << 1
_MAX_MESSAGES = 64


@dataclass(frozen=True, slots=True)
class WriteFault:
    """A write that waits for an answer: its exact host address and the thread that makes it."""

    address: int
    thread: int


@dataclass(frozen=True, slots=True)
class LostPages:
    """Host addresses [start, stop) whose pages the process is about to lose, and how."""

    start: int
    stop: int
    how: str


class Userfaultfd:
    """A userfaultfd of another process's address space, held through a copied descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.features = self._handshake()

    def _handshake(self) -> int:
        offered = self._ioctl(
            _UFFDIO_API, struct.pack("<QQQ", _API, REQUIRED | WANTED, 0), EINVAL_OK
        )
        if offered is None:  # a kernel that does not know WANTED refuses the whole request
            offered = self._ioctl(_UFFDIO_API, struct.pack("<QQQ", _API, REQUIRED, 0), EINVAL_OK)
        if offered is None:
            raise EnvironmentFault(
                "this kernel's userfaultfd cannot write-protect shared memory",
                expected="Linux 5.19 or later",
                got=os.uname().release,
            )
        return int(struct.unpack("<QQQ", offered)[1])

    def _ioctl(self, request: int, argument: bytes, accept: frozenset[int]) -> bytes | None:
        """Run one ioctl and return its argument as the kernel left it; None for errno ``accept``.

        The address space ends with its process: the kernel then says ESRCH, and so do we.
        """
        buffer = bytearray(argument)
        try:
            fcntl.ioctl(self.descriptor, request, buffer)
        except OSError as error:
            if error.errno in accept:
                return None
            if error.errno == errno.ESRCH:
                raise GuestGone("the hypervisor process ended") from error
            raise EnvironmentFault(f"userfaultfd: {error.strerror}") from error
        return bytes(buffer)

    def register(self, start: int, size: int) -> None:
        """Watch host addresses ``[start, start + size)``; nothing is protected by this yet."""
        self._ioctl(_UFFDIO_REGISTER, struct.pack("<QQQQ", start, size, _REGISTER_MODE_WP, 0), NONE)

    def unregister(self, start: int, size: int) -> None:
        """Stop watching a range: its protection is lifted and its waiting writers go on."""
        self._ioctl(_UFFDIO_UNREGISTER, struct.pack("<QQ", start, size), NONE)

    def protect(self, start: int, size: int) -> None:
        """Make every write to the range wait for an answer."""
        self._write_protect(start, size, _WRITEPROTECT_MODE_WP)

    def release(self, start: int, size: int) -> None:
        """Lift the protection of the range and let its waiting writers go on."""
        self._write_protect(start, size, 0)

    def _write_protect(self, start: int, size: int, mode: int) -> None:
        # EAGAIN: the address space changes under us (a mapping comes or goes); the kernel asks
        # to be called again (mm/userfaultfd.c, mwriteprotect_range).
        while True:
            argument = struct.pack("<QQQ", start, size, mode)
            if self._ioctl(_UFFDIO_WRITEPROTECT, argument, AGAIN) is not None:
                return

    def read(self) -> list[WriteFault | LostPages]:
        """Return the writes that wait now and the pages that are going; empty if nothing is.

        Raises FormatError for a message that is neither.
        """
        try:
            data = os.read(self.descriptor, _MESSAGE.size * _MAX_MESSAGES)
        except BlockingIOError:
            return []
        return [_message(data, offset) for offset in range(0, len(data), _MESSAGE.size)]

    def close(self) -> None:
        """Close our copy.  Protection ends when the hypervisor's own descriptor closes too."""
        os.close(self.descriptor)


NONE: frozenset[int] = frozenset()
EINVAL_OK = frozenset({errno.EINVAL})
AGAIN = frozenset({errno.EAGAIN})


def _message(data: bytes, offset: int) -> WriteFault | LostPages:
    event, _, _, _, flags, address, thread = _MESSAGE.unpack_from(data, offset)
    if event in (_EVENT_REMOVE, _EVENT_UNMAP):  # (start, stop)
        return LostPages(flags, address, _EVENT_NAMES[event])
    if event == _EVENT_REMAP:  # (from, to, length)
        return LostPages(flags, flags + thread, _EVENT_NAMES[event])
    if event != _EVENT_PAGEFAULT or not flags & _PAGEFAULT_FLAG_WP:
        raise FormatError(
            "uffd_msg",
            offset,
            "not a write-protect fault",
            expected=hex(_EVENT_PAGEFAULT),
            got=hex(event),
        )
    return WriteFault(address, thread & 0xFFFFFFFF)
