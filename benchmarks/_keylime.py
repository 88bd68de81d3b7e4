"""Keylime's functions beside ours: the same inputs, the same core, turn and turn about.

Part of ``./dev bench evidence``.  Keylime is installed from PyPI into a virtual environment of
its own; ``_keylime_worker.py`` runs in it, as a child in our process group, and is asked for one
round after each of ours.  Timed are library calls alone (no TLS, HTTP or database), in CPU time:

``quote_{rsa,p256}``
    a quote that a real TPM signed, from bytes: the AK's public area loaded, signature, nonce and
    pcrDigest checked.  Ours also checks selection, scheme, attributes and signer.
``eventlog``
    a boot log, from bytes to PCR values and decoded events.
``ima``
    an IMA list with every entry against reference paths, replayed over SHA-256; Keylime reads the
    ASCII list, we the binary one, as each does in use.

Where Keylime does not install, or cannot run a part, that is said and the rest goes on.
"""

from __future__ import annotations

import base64
import json
import os
import statistics
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import _evidence_eventlog, _evidence_ima, _keylime_install
from benchmarks.figures import Against, Figure, from_samples
from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.tpm import PcrSelectionList, parse_public_2b, parse_quote
from undercroft.verify.ak import verify_ak
from undercroft.verify.quote import verify_quote
from undercroft.wiring import home

RECORDED = Path(__file__).parents[1] / "tests" / "vectors" / "tpm" / "recorded"
QUOTES = {"quote_rsa": "quote-rsassa-sha256", "quote_p256": "quote-ecdsa-p256-sha256"}
ENTRIES = 50_000
ROUNDS = 7
REPETITIONS = {
    "quote_rsa": (400, 400),
    "quote_p256": (400, 400),
    "eventlog": (40, 4),
    "ima": (1, 1),
}
"""How often a round does it: (ours, Keylime's), about equally long."""

Task: TypeAlias = Callable[[], object]


def _tools_pcrs(bank: PcrBank) -> bytes:
    """Return PCR values as tpm2-tools writes its own structures: Keylime reads that form.

    TPML_PCR_SELECTION with room for 16 banks, then TPML_DIGESTs of 8 digests with room for 64
    bytes each, in the byte order and padding of x86.
    """
    select = sum(1 << index for index in bank.values).to_bytes(3, "little")
    selection = struct.pack("<HB3s2x", bank.algorithm.alg_id, 3, select)
    values = [bank.values[index] for index in sorted(bank.values)]
    lists = [values[i : i + 8] for i in range(0, len(values), 8)]
    room = struct.Struct("<H64s")
    digests = [
        struct.pack("<I", len(some))
        + b"".join(room.pack(len(v), v) for v in some).ljust(8 * 66, b"\0")
        for some in lists
    ]
    return (
        struct.pack("<I", 1)
        + selection.ljust(16 * 8, b"\0")
        + struct.pack("<I", len(lists))
        + b"".join(digests)
    )


def _quote(name: str) -> tuple[Task, dict[str, str]]:
    """Return our check of a recorded quote, and the same quote as Keylime takes it."""
    case: dict[str, Any] = json.loads((RECORDED / f"{name}.json").read_text())
    ak, attest, signature, nonce = (
        bytes.fromhex(case[field])
        for field in ("ak_public", "attest", "signature", "qualifying_data")
    )
    bank = PcrBank(
        HashAlgorithm.SHA256,
        {int(index): bytes.fromhex(value) for index, value in case["pcrs"]["sha256"].items()},
    )
    selection = PcrSelectionList.of({bank.algorithm: list(bank.values)})

    def ours() -> object:
        key = verify_ak(parse_public_2b(ak))
        return verify_quote(parse_quote(attest, signature, (bank,)), key, nonce, selection)

    parts = (base64.b64encode(part).decode() for part in (attest, signature, _tools_pcrs(bank)))
    return ours, {
        "ak": base64.b64encode(ak).decode(),
        "quote": "r" + ":".join(parts),
        "nonce": nonce.decode(),
    }


def _ima(folder: Path) -> Task:
    """Return our appraisal of a list, and write list and references as Keylime takes them."""
    judge, kernel = _evidence_ima.references(ENTRIES), _evidence_ima.booted(ENTRIES)
    quoted, boot, data = (
        kernel.bank(HashAlgorithm.SHA256),
        list(kernel.boot.values()),
        kernel.binary,
    )
    paths = (line.split(b" ")[3:5] for line in kernel.ascii.splitlines())
    digests = {path.decode(): [digest.split(b":")[1].decode()] for digest, path in paths}
    (folder / "ima.json").write_text(
        json.dumps({"digests": digests, "pcr": quoted.values[10].hex()})
    )
    (folder / "ima.ascii").write_bytes(kernel.ascii)
    return lambda: _evidence_ima.passed(_evidence_ima.appraise(data, quoted, judge, boot))


def _inputs(folder: Path) -> dict[str, Task]:
    """Write what the worker reads; return our own tasks on the same."""
    quotes = {task: _quote(case) for task, case in QUOTES.items()}
    log = _evidence_eventlog.LOG.read_bytes()
    inputs = {
        "quotes": {task: theirs for task, (_, theirs) in quotes.items()},
        "eventlog": base64.b64encode(log).decode(),
    }
    (folder / "inputs.json").write_text(json.dumps(inputs))
    tasks = {task: ours for task, (ours, _) in quotes.items()}
    return tasks | {"eventlog": lambda: _evidence_eventlog.once(log), "ima": _ima(folder)}


@contextmanager
def _worker(
    environment: dict[str, str], python: Path, inputs: Path
) -> Iterator[Callable[[str], Any]]:
    """Start the worker; give a function that writes it a line and returns its answer."""
    process = subprocess.Popen(
        # -P: this folder has modules named like the library's own, which the worker must not find.
        [python, "-P", Path(__file__).with_name("_keylime_worker.py"), inputs],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        text=True, env={**os.environ, **environment},
    )  # fmt: skip
    stdin, stdout = process.stdin, process.stdout
    assert stdin is not None
    assert stdout is not None

    def ask(line: str) -> Any:
        if line:
            stdin.write(line + "\n")
            stdin.flush()
        answer = stdout.readline()
        if not answer:
            raise RuntimeError("the worker died")
        return json.loads(answer)

    try:
        yield ask
    finally:
        stdin.close()
        process.wait(timeout=60)


def _compared(name: str, task: Task, ask: Callable[[str], Any], version: str) -> list[Figure]:
    ours_n, theirs_n = REPETITIONS[name]
    items = ENTRIES if name == "ima" else 1
    ours, theirs = [], []
    for _ in range(ROUNDS):
        start = time.thread_time()
        for _ in range(ours_n):
            task()
        ours.append(items * ours_n / (time.thread_time() - start))
        theirs.append(items * theirs_n / ask(f"{name} {theirs_n}"))
    against = Against(f"Keylime {version}", statistics.median(theirs))
    ratios = [mine / other for mine, other in zip(ours, theirs, strict=True)]
    return [
        from_samples(f"{name}_beside_keylime_per_s", "1/s", ours, against=against),
        from_samples(f"{name}_times_keylime", "times", ratios),
    ]


def figures() -> list[Figure]:
    """Return our rates against Keylime's, and the ratios; nothing where it does not install."""
    folder = home() / "bench-keylime"
    try:
        environment = _keylime_install.install(folder)
    except _keylime_install.FAILURES as error:
        _keylime_install.say(f"no comparison with Keylime, it does not install: {error}")
        return []
    found: list[Figure] = []
    with tempfile.TemporaryDirectory() as name:
        tasks = _inputs(Path(name))
        with _worker(environment, folder / "bin" / "python", Path(name)) as ask:
            hello = ask("")
            for task, why in hello["missing"].items():
                _keylime_install.say(f"Keylime cannot run {task}: {why}")
            for task in tasks.keys() - hello["missing"].keys():
                found += _compared(task, tasks[task], ask, hello["version"])
    return sorted(found, key=lambda figure: figure.name)
