"""Run the TPM multiplexer: ``python -m undercroft.securekernel.vtpm``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import undercroft
from undercroft.base import EnvironmentFault
from undercroft.securekernel import confine, landlock
from undercroft.securekernel.vtpm import control
from undercroft.securekernel.vtpm.interposer import Interposer, listen
from undercroft.securekernel.vtpm.keyfile import KeyFile
from undercroft.securekernel.vtpm.launchlog import MAX_MEASURED, LaunchConfig
from undercroft.securekernel.vtpm.multiplexer import Multiplexer
from undercroft.securekernel.vtpm.rc import VtpmUnavailable
from undercroft.securekernel.vtpm.upstream import Upstream


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m undercroft.securekernel.vtpm",
        description="Stand between QEMU's TPM emulator device and swtpm.",
    )
    parser.add_argument(
        "--upstream", type=Path, required=True, help="swtpm's control socket (--ctrl type=unixio)"
    )
    parser.add_argument(
        "--listen", type=Path, required=True, help="control socket to offer to QEMU"
    )
    parser.add_argument(
        "--control", type=Path, required=True, help="socket to offer to the secure kernel"
    )
    parser.add_argument("--pidfile", type=Path, help="written when both sockets are open")
    parser.add_argument(
        "--manifest",
        type=Path,
        help="launch: measure this file (see vtpm.manifest) into PCR 17 at every start",
    )
    parser.add_argument(
        "--identity",
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="launch: measure this file into PCR 18 (may be given several times)",
    )
    parser.add_argument(
        "--keys",
        type=Path,
        help="keep the attestation keys' saved contexts in this file, for a resume later",
    )
    parser.add_argument(
        "--terminate",
        action="store_true",
        help="shut swtpm down and exit when the hypervisor disconnects",
    )
    parser.add_argument(
        "--stall-seconds",
        type=float,
        default=90.0,
        help="how long swtpm may take for one command (default: %(default)s)",
    )
    return parser.parse_args(argv)


def _launch_config(manifest: Path | None, identities: list[str]) -> LaunchConfig | None:
    """Read what is to be measured.  Raises EnvironmentFault."""
    if manifest is None:
        return None
    named = []
    for identity in identities:
        name, _, file = identity.partition("=")
        if not name or not file:
            raise EnvironmentFault("not NAME=FILE", where="--identity", got=identity)
        named.append((name, _read(Path(file))))
    return LaunchConfig(_read(manifest), tuple(named))


def _read(path: Path) -> bytes:
    try:
        data = path.read_bytes()
    except OSError as fault:
        raise EnvironmentFault(f"cannot be read: {fault}", where=str(path)) from fault
    if len(data) > MAX_MEASURED:
        raise EnvironmentFault(
            "too large to be measured", where=str(path), expected=MAX_MEASURED, got=len(data)
        )
    return data


def _confine(multiplexer: Multiplexer, arguments: argparse.Namespace) -> None:
    """Give up everything but the sockets and the files named, as far as the kernel can.

    Before any thread is started.  What was not given up is noted: the guest runs on regardless.
    """
    files = (arguments.listen, arguments.control, arguments.pidfile, arguments.keys)
    folders = {path.absolute().parent for path in files if path is not None}
    own = Path(undercroft.__file__).parent
    code = (Path(sys.prefix), Path(sys.base_prefix), own, Path("/usr/lib"), Path("/lib"))
    steps: dict[str, Callable[[], None]] = {
        "landlock": lambda: landlock.restrict(code, folders),
        "seccomp": lambda: confine.confine(traceable=True),
    }
    for name, give_up in steps.items():
        try:
            give_up()
        except EnvironmentFault as fault:
            multiplexer.note(f"not confined by {name}: {fault}")
        else:
            multiplexer.confined_by.append(name)


def _leave(*_: object) -> None:
    """Leave the main thread's wait; setting an Event from a signal handler could deadlock."""
    raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal or, with ``--terminate``, until the hypervisor has gone."""
    arguments = _arguments(argv)
    upstream = Upstream(arguments.upstream, timeout=arguments.stall_seconds)
    try:
        launch = _launch_config(arguments.manifest, arguments.identity)
        upstream.connect()
        guest = listen(arguments.listen)
        kernel = listen(arguments.control)
    except EnvironmentFault as fault:
        print(f"vtpm: {fault}", file=sys.stderr)  # noqa: T201 - a program's own error message
        return 1
    keys = None if arguments.keys is None else KeyFile(arguments.keys)
    multiplexer = Multiplexer(upstream, launch, keys)
    _confine(multiplexer, arguments)
    interposer = Interposer(multiplexer, guest, kernel, until_guest_leaves=arguments.terminate)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _leave)
    try:
        interposer.start()
        if arguments.pidfile is not None:
            arguments.pidfile.write_text(f"{os.getpid()}\n")
        interposer.wait()
    finally:
        interposer.stop()
        if arguments.terminate:
            with contextlib.suppress(VtpmUnavailable):
                upstream.control(control.request(control.Control.SHUTDOWN))
        upstream.close()
        for path in (arguments.listen, arguments.control, arguments.pidfile):
            if path is not None:
                path.unlink(missing_ok=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
