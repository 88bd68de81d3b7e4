"""The guest's vTPM: swtpm, with an EK certificate from a certificate authority of our own.

The authority is made once under ``home/vtpm-ca`` and stands in for a TPM manufacturer: its
certificates say "this is a vTPM that this machine made", nothing more.
"""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.guests.launch import LaunchFiles
from undercroft.guests.processes import ProcessId, spawn, tail

SETUP_TIMEOUT_S = 60.0
SOCKET_TIMEOUT_S = 10.0
_SO_ACCEPTCON = 0x1_0000
_REMEDY = "apt-get install swtpm swtpm-tools"


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Let one process at a time use the certificate authority (it counts serial numbers)."""
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _write_configuration(authority: Path) -> Path:
    localca = shutil.which("swtpm_localca")
    if localca is None or shutil.which("swtpm_setup") is None:
        raise EnvironmentFault("swtpm_setup is not installed", remedy=_REMEDY)
    (authority / "localca.conf").write_text(
        f"statedir = {authority}\n"
        f"signingkey = {authority}/signkey.pem\n"
        f"issuercert = {authority}/issuercert.pem\n"
        f"certserial = {authority}/certserial\n"
    )
    (authority / "localca.options").write_text(
        "--platform-manufacturer undercroft\n--platform-version 1\n--platform-model QEMU\n"
    )
    configuration = authority / "setup.conf"
    configuration.write_text(
        f"create_certs_tool = {localca}\n"
        f"create_certs_tool_config = {authority}/localca.conf\n"
        f"create_certs_tool_options = {authority}/localca.options\n"
    )
    return configuration


def manufacture(state: Path, authority: Path, *, name: str) -> None:
    """Make a TPM 2.0 with an EK, its certificate, and the sha1 and sha256 banks, in ``state``.

    Raises EnvironmentFault with what swtpm_setup said.
    """
    authority.mkdir(parents=True, exist_ok=True, mode=0o700)
    state.mkdir(parents=True, exist_ok=True, mode=0o700)
    log = state / "setup.log"
    with _locked(authority):
        command = [
            "swtpm_setup", "--tpm2", "--tpmstate", str(state), "--create-ek-cert",
            "--config", str(_write_configuration(authority)), "--vmid", name,
            "--pcr-banks", "sha1,sha256", "--overwrite", "--logfile", str(log),
            "--write-ek-cert-files", str(state),
        ]  # fmt: skip
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, timeout=SETUP_TIMEOUT_S, check=False,
                stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault("swtpm_setup did not end", where=str(log)) from error
    if done.returncode:
        raise EnvironmentFault(
            "the vTPM could not be made",
            where=str(log),
            got=tail(log) or done.stderr.strip(),
            remedy=_REMEDY,
        )


def is_listening(path: Path) -> bool:
    """Tell whether somebody listens on the unix socket ``path``: it exists a moment before.

    From /proc/net/unix: a listening socket has the flag __SO_ACCEPTCON (net/unix/af_unix.c).
    """
    wanted = str(path)
    for row in Path("/proc/net/unix").read_text(errors="surrogateescape").splitlines()[1:]:
        fields = row.split(maxsplit=7)
        if len(fields) == 8 and fields[7] == wanted and int(fields[3], 16) & _SO_ACCEPTCON:
            return True
    return False


def wait_for_socket(path: Path, process: ProcessId, log: Path) -> None:
    """Wait until somebody listens at ``path``.  Raises EnvironmentFault."""
    deadline = time.monotonic() + SOCKET_TIMEOUT_S
    while process.is_alive() and time.monotonic() < deadline:
        if is_listening(path):
            return
        time.sleep(0.01)
    raise EnvironmentFault(
        "the vTPM does not listen", where=str(path), expected="a socket", got=tail(log)
    )


def start_swtpm(state: Path, folder: Path) -> tuple[ProcessId, Path]:
    """Start swtpm over the state in ``state``; return who it is and its control socket.

    It ends by itself when the connection to its control socket does.
    """
    if shutil.which("swtpm") is None:
        raise EnvironmentFault("swtpm is not installed", remedy=_REMEDY)
    path, log = folder / "swtpm.sock", folder / "swtpm.log"
    path.unlink(missing_ok=True)
    process = spawn(
        [
            "swtpm", "socket", "--tpm2", "--tpmstate", f"dir={state}",
            "--ctrl", f"type=unixio,path={path}", "--terminate",
        ],
        pid_file=folder / "swtpm.pid",
        log=log,
    )  # fmt: skip
    wait_for_socket(path, process, log)
    return process, path


def _launch_options(launch: LaunchFiles | None) -> list[str]:
    if launch is None:
        return []
    identities = [f"--identity={name}={path}" for name, path in launch.identities]
    return [f"--manifest={launch.manifest}", f"--keys={launch.keys}", *identities]


def start_interposer(
    upstream: Path, folder: Path, launch: LaunchFiles | None = None
) -> tuple[ProcessId, Path, Path]:
    """Start the secure kernel's TPM multiplexer between QEMU and swtpm.

    ``launch`` is what it measures each time the machine starts.
    Returns who it is, the socket for QEMU, and its control socket.
    """
    listen, control, log = folder / "vtpm.sock", folder / "vtpm-ctl.sock", folder / "vtpm.log"
    for path in (listen, control):
        path.unlink(missing_ok=True)
    process = spawn(
        [
            sys.executable, "-m", "undercroft.securekernel.vtpm", "--upstream", str(upstream),
            "--listen", str(listen), "--control", str(control),
            *_launch_options(launch),
        ],
        pid_file=folder / "vtpm.pid",
        log=log,
    )  # fmt: skip
    for path in (listen, control):
        wait_for_socket(path, process, log)
    return process, listen, control
