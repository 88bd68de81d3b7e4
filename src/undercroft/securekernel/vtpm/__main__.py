"""Run the TPM multiplexer: ``python -m undercroft.securekernel.vtpm``."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.securekernel.vtpm import control
from undercroft.securekernel.vtpm.interposer import Interposer, listen
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


def _leave(*_: object) -> None:
    """Leave the main thread's wait; setting an Event from a signal handler could deadlock."""
    raise SystemExit(0)


def main(argv: list[str] | None = None) -> int:
    """Serve until a signal or, with ``--terminate``, until the hypervisor has gone."""
    arguments = _arguments(argv)
    upstream = Upstream(arguments.upstream, timeout=arguments.stall_seconds)
    try:
        upstream.connect()
        guest = listen(arguments.listen)
        kernel = listen(arguments.control)
    except EnvironmentFault as fault:
        print(f"vtpm: {fault}", file=sys.stderr)  # noqa: T201 - a program's own error message
        return 1
    interposer = Interposer(
        Multiplexer(upstream), guest, kernel, until_guest_leaves=arguments.terminate
    )
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
