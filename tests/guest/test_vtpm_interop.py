"""Other people's tests of a TPM, with the multiplexer and without it: the same results.

``UNDERCROFT_TPM2_TOOLS`` names a checkout of tpm2-tools at the version that is installed; its
integration tests are run against a swtpm that a hypervisor drives, and against the same through
the multiplexer, which quotes all the time meanwhile.  What each said is written to
``docs/vtpm-interop.md``.
"""

from __future__ import annotations

import logging
import os
import re
import shutil
import signal
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from undercroft.base import HashAlgorithm
from undercroft.securekernel.vtpm import TpmError, VtpmClient
from undercroft.testing.interop import NOT_RUN, Outcome, ToolResults, save
from undercroft.testing.vtpm import HypervisorSide, MultiplexerProcess, SwtpmProcess, ToolRelay

pytestmark = [pytest.mark.guest, pytest.mark.slow]

CHECKOUT = "UNDERCROFT_TPM2_TOOLS"
TAKE_THE_KEY_AWAY = frozenset({"tests/changepps", "tests/hierarchycontrol", "tests/sessionaudit"})
"""They use the platform hierarchy, which a machine's firmware closes before the guest runs."""
LOG = logging.getLogger(__name__)
SCRIPT_TIMEOUT_S = 600.0
_FAILED = re.compile(r"on line (\d+) failed")


@pytest.fixture(scope="module")
def manufactured(tmp_path_factory: pytest.TempPathFactory) -> SwtpmProcess:
    swtpm = SwtpmProcess(tmp_path_factory.mktemp("manufactured"))
    swtpm.stop()
    return swtpm


@contextmanager
def hypervisor_of(folder: Path, listen: Path) -> Iterator[ToolRelay]:
    """A hypervisor that has switched its TPM on; yields the way in for programs in its guest."""
    hypervisor = HypervisorSide(listen, timeout=SCRIPT_TIMEOUT_S)
    hypervisor.power_on()
    relay = ToolRelay(hypervisor, folder / "relay", managed=True)
    try:
        yield relay
    finally:
        relay.close()
        hypervisor.close()


@contextmanager
def plain_tpm(folder: Path, like: SwtpmProcess) -> Iterator[ToolRelay]:
    """A TPM with nothing between it and the hypervisor."""
    swtpm = SwtpmProcess(folder, like=like)
    try:
        with hypervisor_of(folder, swtpm.path) as relay:
            yield relay
    finally:
        swtpm.stop()


class Quoter:
    """Quotes and records, twenty times a second, until it is left or the TPM refuses.

    A guest whose firmware leaves the platform hierarchy open can take the launch's key away.
    """

    def __init__(self, path: Path) -> None:
        self.quotes = 0
        self.refused = ""
        self._path = path
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def _run(self) -> None:
        try:
            with VtpmClient(self._path) as client:
                while not self._stop.wait(0.05):
                    client.quote(bytes(32), {HashAlgorithm.SHA256: range(24)})
                    client.record("note", b"again")
                    self.quotes += 1
        except TpmError as refused:
            self.refused = refused.name

    def __enter__(self) -> Quoter:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)


@contextmanager
def multiplexed_tpm(folder: Path, like: SwtpmProcess) -> Iterator[tuple[ToolRelay, Quoter]]:
    """The same behind the multiplexer, which launches and quotes all the time."""
    swtpm = SwtpmProcess(folder, like=like)
    (folder / "manifest").write_bytes(b"manifest\n")
    multiplexer = MultiplexerProcess(folder, swtpm, "--manifest", str(folder / "manifest"))
    try:
        with (
            hypervisor_of(folder, multiplexer.listen) as tcti,
            Quoter(multiplexer.kernel) as quoter,
        ):
            yield tcti, quoter
    finally:
        multiplexer.stop()
        swtpm.stop()


def run_script(script: Path, tests: Path, folder: Path, tcti: str) -> Outcome:
    """Run one of the integration tests, in a folder of its own."""
    environment = {
        "PATH": f"{tests}:{os.environ['PATH']}",  # the scripts find their helpers there
        "HOME": str(folder),
        "TMPDIR": str(folder),
        "LANG": "C.UTF-8",
        "srcdir": str(tests.parent.parent),
        "abs_srcdir": str(tests.parent.parent),
        "abs_builddir": str(tests.parent.parent),
        "TPM2_TOOLS_TEST_FIXTURES": str(tests / "fixtures"),
        "TPM2TOOLS_TEST_TCTI": tcti,
        "TPM2TOOLS_TEST_PERSISTENT": "true",
    }
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            ["bash", os.path.relpath(script, folder)], cwd=folder, env=environment,
            stdin=subprocess.DEVNULL, stdout=out, stderr=out, start_new_session=True,
        )  # fmt: skip
        try:
            status = process.wait(SCRIPT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            status = process.wait()
    failed = _FAILED.findall(log.read_text(errors="replace"))
    return Outcome(status, failed[-1] if failed and status not in (0, 77) else "")


def scripts_of(tests: Path) -> list[Path]:
    """The scripts that are run: all of the commands' and the feature API's tests."""
    found = sorted((tests / "tests").glob("*.sh")) + sorted((tests / "fapi").glob("*.sh"))
    return [script for script in found if script.stem not in NOT_RUN]


def test_tpm2_tools_own_tests_end_as_they_do_without_us(
    manufactured: SwtpmProcess, tmp_path: Path, guest_home: Path
) -> None:
    checkout = os.environ.get(CHECKOUT)
    if not checkout:
        pytest.skip(f"needs a checkout of tpm2-tools, named by {CHECKOUT}")
    tests = Path(checkout).resolve() / "test" / "integration"
    version = subprocess.run(
        ["tpm2", "--version"], capture_output=True, text=True, check=True
    ).stdout
    found = re.search(r'version="([^"]+)"', version)
    assert found, version
    wanted = os.environ.get("UNDERCROFT_TPM2_TOOLS_ONLY", "").split()
    scripts = [each for each in scripts_of(tests) if not wanted or each.stem in wanted]
    assert scripts, "no scripts: the folder is not a checkout of tpm2-tools"
    plain: dict[str, Outcome] = {}
    multiplexed: dict[str, Outcome] = {}
    refused: list[str] = []
    quotes = commands = 0
    for script in scripts:
        name = f"{script.parent.name}/{script.stem}"
        folders = [tmp_path / f"{script.stem}-{which}" for which in ("plain", "multiplexed")]
        for folder in folders:
            folder.mkdir()
        with plain_tpm(folders[0], manufactured) as relay:
            plain[name] = run_script(script, tests, folders[0], relay.tcti)
            commands += relay.commands
        with multiplexed_tpm(folders[1], manufactured) as (relay, quoter):
            multiplexed[name] = run_script(script, tests, folders[1], relay.tcti)
            commands += relay.commands
        quotes += quoter.quotes
        if quoter.refused:
            LOG.info("%s: the TPM refused a quote: %s", name, quoter.refused)
            refused.append(name)
        LOG.info("%s: %s; through the multiplexer %s", name, plain[name], multiplexed[name])
        if plain[name] == multiplexed[name] and not plain[name].status:
            for folder in folders:
                shutil.rmtree(folder, ignore_errors=True)
    assert commands > 50 * len(scripts), "the scripts hardly used the TPM"
    results = ToolResults(found[1], commands, quotes, plain, multiplexed)
    if not wanted:
        save(results, guest_home / "interop")
    assert multiplexed == plain
    assert set(refused) <= TAKE_THE_KEY_AWAY
    passed = sum(outcome.status == 0 for outcome in plain.values())
    assert passed > len(scripts) // 2 or wanted
