"""Ordinary software in a real guest, with the multiplexer under it and without: the same results.

tpm2-tools, systemd-cryptenroll and clevis are those of this machine, copied into the guest with
their libraries.  ``UNDERCROFT_TPM2_SELFTESTS`` names a folder with the Linux kernel's own TPM 2.0
selftests (``tools/testing/selftests/tpm2``, as in the package linux-source), which are run too.
"""

from __future__ import annotations

import base64
import datetime as dt
import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from undercroft.base import HashAlgorithm
from undercroft.guests.cpio import CpioEntry, directory, symlink
from undercroft.guests.manifest import GuestBuild
from undercroft.guests.run import Guest, RunOptions, start
from undercroft.packages import Archive
from undercroft.securekernel.vtpm import VtpmClient
from undercroft.testing.interop import GuestResults, save
from undercroft.testing.toolbox import bundle, modules, with_toolbox

pytestmark = [pytest.mark.guest, pytest.mark.slow]

SELFTESTS = "UNDERCROFT_TPM2_SELFTESTS"
BOOT_TIMEOUT_S = 300.0
RUN_TIMEOUT_S = 1200.0
PROGRAMS = (
    "pwmake", "bash", "tpm2", "cryptsetup", "systemd-cryptenroll", "systemd-cryptsetup", "clevis",
    "clevis-luks-bind", "clevis-luks-unlock", "clevis-luks-common-functions", "clevis-luks-list",
    "clevis-encrypt-tpm2", "clevis-decrypt-tpm2", "clevis-decrypt", "clevis-luks-pass", "jose",
    "mktemp", "grep", "sed", "awk", "cut", "tr", "sort", "tail", "head", "cat", "rm", "mkdir",
    "od", "readlink", "dd", "cmp", "printf", "timeout",
)  # fmt: skip
LIBRARIES = Path("/usr/lib/x86_64-linux-gnu")
PLUGINS = (
    "libtss2-tcti-device.so.0", "libtss2-esys.so.0", "libtss2-rc.so.0", "libtss2-mu.so.0",
    "libtss2-sys.so.1", "cryptsetup/libcryptsetup-token-systemd-tpm2.so",
)  # fmt: skip
MODULES = ("dm-mod", "dm-crypt", "loop", "xts", "ecb", "algif-skcipher", "algif-hash")
CRACKLIB = Path("/var/cache/cracklib")
"""The word list that pwmake, of clevis, consults."""
SCRIPT = Path(__file__).with_name("interop.sh")


def toolbox(image: Path) -> list[CpioEntry]:
    files = {"/toolbox": SCRIPT.read_bytes()}
    files |= {str(path): path.read_bytes() for path in CRACKLIB.glob("cracklib_dict.*")}
    trees, programs = {}, list(PROGRAMS)
    if folder := os.environ.get(SELFTESTS):
        files |= {f"/selftests/{p.name}": p.read_bytes() for p in Path(folder).glob("*.py")}
        files["/usr/bin/python3"] = Path("/usr/bin/python3.11").read_bytes()
        trees[Path("/usr/lib/python3.11")] = "/usr/lib/python3.11"
        programs.append("/usr/bin/python3.11")
    plugins = [str(LIBRARIES / name) for name in PLUGINS]
    return [
        *bundle(programs, plugins=plugins, trees=trees, files=files),
        *modules(image, MODULES),
        symlink("/bin/bash", "/usr/bin/bash"),
        symlink("/lib/x86_64-linux-gnu/cryptsetup", f"{LIBRARIES}/cryptsetup"),
        directory("/run"),
        *(symlink(f"/usr/bin/tpm2_{name}", "tpm2") for name in TOOLS),
    ]


TOOLS = (
    "createprimary", "create", "load", "unseal", "flushcontext", "pcrread", "pcrextend", "quote",
    "createpolicy", "checkquote", "eventlog", "createek", "createak", "getcap", "readpublic",
)  # fmt: skip


@pytest.fixture(scope="module")
def build(
    micro_build: GuestBuild, guest_home: Path, tmp_path_factory: pytest.TempPathFactory
) -> GuestBuild:
    archive = Archive(guest_home / "apt", now=dt.datetime.now(dt.UTC))
    image = micro_build.packages[0]
    package = archive.fetch(image.name, image.version)
    folder = tmp_path_factory.mktemp("toolbox")
    return with_toolbox(micro_build, toolbox(package.path), folder)


@contextmanager
def running(build: GuestBuild, home: Path, *, interposer: bool) -> Iterator[Guest]:
    name = f"interop-{os.getpid()}-{int(interposer)}"
    options = RunOptions(memory_mb=1024, interposer=interposer)
    guest = start(build, home, name, options, now=dt.datetime.now(dt.UTC))
    try:
        guest.wait_ready(BOOT_TIMEOUT_S)
        yield guest
    finally:
        guest.stop()
        guest.remove()


def put(guest: Guest, path: str, data: bytes) -> None:
    """Write a file in the guest."""
    text = base64.b64encode(data).decode()
    guest.console(f": > {path}.b64")
    for at in range(0, len(text), 3000):
        guest.console(f"printf %s {text[at : at + 3000]} >> {path}.b64")
    guest.console(f"base64 -d {path}.b64 > {path}")


def outcomes(guest: Guest, steps: Sequence[str] = ()) -> dict[str, str]:
    """Run the toolbox's script in the guest; return how each of its steps ended."""
    said = guest.console(f"/toolbox {' '.join(steps)}", timeout_s=RUN_TIMEOUT_S)
    found = [line.split() for line in said.splitlines() if line.startswith("RESULT ")]
    assert found, said
    return {name: result for _, name, result in found}


class Busy:
    """Quotes and records while it is entered."""

    def __init__(self, path: Path) -> None:
        self.quotes = 0
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        with VtpmClient(self._path) as client:
            while not self._stop.wait(0.5):
                client.quote(bytes(32), {HashAlgorithm.SHA256: range(24)})
                client.record("note", b"again")
                self.quotes += 1

    def __enter__(self) -> Busy:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


def test_software_in_the_guest_works_as_without_us(build: GuestBuild, guest_home: Path) -> None:
    with running(build, guest_home, interposer=False) as guest:
        plain = outcomes(guest)
    with running(build, guest_home, interposer=True) as guest:
        assert guest.info.vtpm_control is not None
        with VtpmClient(guest.info.vtpm_control) as client:
            nonce = bytes(range(32))
            quote = client.quote(nonce, {HashAlgorithm.SHA256: (0, 4, 7, 10, 17, 18, 19)})
            log = client.launch_log(quote)
        public = len(quote.ak_public).to_bytes(2, "big") + quote.ak_public
        ours = {"attest": quote.attest, "sig": quote.signature, "ak": public, "log": log}
        for name, data in ours.items():
            put(guest, f"/tmp/{name}", data)
        with Busy(guest.info.vtpm_control) as busy:
            multiplexed = outcomes(guest)
        of_ours = outcomes(guest, ["ours", nonce.hex()])
        logs = {
            name: guest.console(f"cat /tmp/w/{name}.log; true")
            for name, result in (multiplexed | of_ours).items()
            if result not in ("0", plain.get(name))
        }
    kernel = build.kernel_release
    save(GuestResults(kernel, busy.quotes, plain, multiplexed | of_ours), guest_home / "interop")
    assert multiplexed == plain, logs
    assert set(plain.values()) == {"0"}, plain
    assert of_ours == {"checkquote-of-ours": "0", "eventlog-of-ours": "0"}, logs
    assert busy.quotes > 5
