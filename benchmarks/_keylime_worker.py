"""Keylime's functions, timed in Keylime's own virtual environment.

Run by ``_keylime.py`` with the folder of inputs as its argument; imports nothing of ours.  Each
line of standard input is ``TASK REPETITIONS``; each line of standard output is JSON: first what
can be run and why something cannot, then for every line the CPU seconds of the repetitions, this
process's and its children's (Keylime starts tpm2_eventlog for every log).
"""

from __future__ import annotations

import importlib.metadata
import json
import logging
import resource
import sys
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

# Keylime imports the GnuPG bindings when it starts, for policies signed with GnuPG.  They need
# a compiler and a library to install; nothing that is timed here uses them.
sys.modules.setdefault("gpg", types.ModuleType("gpg"))


def _require(condition: object, what: str) -> None:
    """A refusal would be faster than the work: every timed call must succeed."""
    if not condition:
        raise RuntimeError(f"Keylime did not accept {what}")


def _quote(case: dict[str, str]) -> Callable[[], None]:
    from keylime.tpm.tpm_main import Tpm

    def once() -> None:
        pcrs, error = Tpm._tpm2_checkquote(
            case["ak"], case["quote"], case["nonce"], "sha256", False
        )
        _require(pcrs and not error, f"the quote: {error}")

    return once


def _eventlog(log: str) -> Callable[[], None]:
    from keylime.mba import mba

    mba.load_imports(skip_custom_policies=True)

    def once() -> None:
        pcrs, _, _, failure = mba.bootlog_parse(log, "sha256")
        _require(pcrs and not failure, f"the event log: {getattr(failure, 'events', '')}")

    return once


def _ima(folder: Path) -> Callable[[], None]:
    from keylime.common.algorithms import Hash
    from keylime.ima import ima

    given = json.loads((folder / "ima.json").read_text())
    policy = ima.empty_policy()
    policy["digests"] = given["digests"]
    text = (folder / "ima.ascii").read_text()

    def once() -> None:
        running, failure = ima.process_measurement_list(
            None, text.split("\n"), policy, pcrval=given["pcr"], hash_alg=Hash.SHA256
        )
        _require(running == given["pcr"] and not failure, "the IMA list")

    return once


def _tasks(folder: Path) -> tuple[dict[str, Callable[[], None]], dict[str, str]]:
    """Return what can be run, each tried once, and why the others cannot."""
    inputs: dict[str, Any] = json.loads((folder / "inputs.json").read_text())
    made: dict[str, Callable[[], Callable[[], None]]] = {
        name: partial(_quote, case) for name, case in inputs["quotes"].items()
    }
    made["eventlog"] = partial(_eventlog, inputs["eventlog"])
    made["ima"] = partial(_ima, folder)
    tasks, missing = {}, {}
    for name, make in made.items():
        try:
            task = make()
            task()
        except Exception as error:  # noqa: BLE001 - another's code: whatever it is, it is said
            missing[name] = f"{type(error).__name__}: {error}"
        else:
            tasks[name] = task
    return tasks, missing


def _cpu_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def main() -> None:
    """Answer until standard input ends."""
    out = sys.stdout
    sys.stdout = sys.stderr  # nothing that Keylime prints may get between the answers
    logging.disable(logging.CRITICAL)
    tasks, missing = _tasks(Path(sys.argv[1]))
    version = importlib.metadata.version("keylime")
    print(json.dumps({"version": version, "missing": missing}), file=out, flush=True)
    for line in sys.stdin:
        name, repetitions = line.split()
        start = _cpu_seconds()
        for _ in range(int(repetitions)):
            tasks[name]()
        print(json.dumps(_cpu_seconds() - start), file=out, flush=True)


if __name__ == "__main__":
    main()
