"""The only module that reads configuration and names concrete classes."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError
from undercroft.formats.kernel import KernelImage, load_kernel
from undercroft.guests.info import GuestInfo
from undercroft.guests.manifest import load_build
from undercroft.guests.run import Guest as RunningGuest
from undercroft.packages.deb import read_deb
from undercroft.policy import Policy, parse_policy
from undercroft.securekernel.guest import Guest
from undercroft.securekernel.hypervisor import dump, qemu

_POLICIES = Path(__file__).parent / "policy" / "policies"


def home() -> Path:
    """Return the folder for guests, package caches and saved evidence.

    ``UNDERCROFT_HOME``, else ``$XDG_STATE_HOME/undercroft``, else ``~/.local/state/undercroft``.
    """
    if explicit := os.environ.get("UNDERCROFT_HOME"):
        return Path(explicit)
    state = os.environ.get("XDG_STATE_HOME")
    return (Path(state) if state else Path.home() / ".local" / "state") / "undercroft"


def shipped_policy(name: str) -> Policy:
    """Return a policy that comes with the program (``default``, ``direct-boot``)."""
    return parse_policy((_POLICIES / f"{name}.toml").read_text())


@dataclass(frozen=True, slots=True)
class Target:
    """A guest to look at: how it is seen, its kernel package, and what we know if it is ours."""

    guest: Guest
    image: KernelImage
    info: GuestInfo | None


def open_target(text: str, kernel: Path | None = None) -> Target:
    """Attach to ``text``: ``qemu:<name or pid>`` or ``dump:<file>``.

    ``kernel`` is the vmlinuz or .deb that the guest is meant to run; a guest of ours knows its
    own. Raises EnvironmentFault with what to do.
    """
    scheme, _, name = text.partition(":")
    if scheme == "dump" and name:
        image = _named_kernel(kernel, text)
        return Target(dump.DumpGuest(Path(name)), image, None)
    if scheme != "qemu" or not name:
        raise EnvironmentFault(
            "not a target that can be attached to",
            expected="qemu:<name or pid> or dump:<file>",
            got=text,
            remedy="undercroft guest list",
        )
    if name.isdecimal():
        image = _named_kernel(kernel, text)
        return Target(qemu.attach(name), image, None)
    info = RunningGuest.load(home(), name).info
    image = load_kernel(read_kernel(kernel or load_build(info.build.parent).kernel.path))
    return Target(qemu.attach(str(info.qmp), name=name), image, info)


def _named_kernel(kernel: Path | None, target: str) -> KernelImage:
    """Load the kernel of a guest that we did not start: it has to be named."""
    if kernel is None:
        raise EnvironmentFault(
            "which kernel is this guest meant to run?",
            where=target,
            remedy="name its package or vmlinuz with --kernel",
        )
    return load_kernel(read_kernel(kernel))


def read_kernel(path: Path) -> bytes:
    """Return the vmlinuz at ``path``, or the one inside it if it is a .deb.

    Raises EnvironmentFault if it cannot be read, FormatError if the package has not exactly one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentFault(f"cannot read: {error.strerror}", where=str(path)) from error
    if not data.startswith(b"!<arch>\n"):
        return data
    found = [e.data for e in read_deb(data, lambda name: name.startswith("/boot/vmlinuz-"))]
    if len(found) != 1:
        raise FormatError("kernel package", 0, "no single vmlinuz", expected=1, got=len(found))
    return found[0]
