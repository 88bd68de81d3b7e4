"""Reference values of a whole guest's packages: how long to make, to look up, to hold.

``reference_cold_s``
    from package files in a local cache to a table of 400 packages, nothing listed before: the
    package lists verified, every package decompressed and every file in it hashed;
``reference_warm_s``
    the same again, with each package's list kept;
``lookups_per_s``
    IMA entries of that table, each with its path and digest, as a guest's first list is judged;
    ``lookups_few_per_s`` ten at a time, as they come later, and not for the first time;
``reference_rss_mb``
    what a process that opens the table and looks every file up has more in memory than before;
    ``reference_private_mb`` is what of that it does not share with others of the same table.
"""

from __future__ import annotations

import datetime as dt
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.figures import Against, Figure, from_samples
from undercroft import wiring
from undercroft.base import EnvironmentFault
from undercroft.packages import Archive
from undercroft.packages.archive import Refresh
from undercroft.packages.fileset import build_file_set, with_dependencies
from undercroft.packages.filestore import FileStore, Wanted, open_table
from undercroft.reference.archive import FileArchive, FileRow
from undercroft.reference.layers import file_knowledge, look_up
from undercroft.reference.model import ReferenceSet

PACKAGES = 400
ENTRIES = 100_000
LARGEST = 5 << 20
"""Bytes of the largest package that is taken only to make up the number."""
ROUNDS = 5
APT_CACHE = Path("/var/cache/apt/archives")
SEEDS = (
    "linux-image-cloud-amd64", "systemd-sysv", "openssh-server", "apt", "grub-efi-amd64-signed",
    "shim-signed", "initramfs-tools", "sudo", "python3", "gcc", "make", "git", "curl", "vim",
    "rsync", "cron", "bind9-dnsutils", "nginx", "postgresql", "openssl",
)  # fmt: skip
"""What a server has; its dependencies, and other packages in the cache, make up 400."""
HEAD = b"\x28\0\0\0sha256:\0"


def run() -> list[Figure]:
    """Return the figures."""
    folder = Path(tempfile.mkdtemp(prefix="undercroft-bench-"))
    try:
        archive = _archive()
        wanted = _wanted(archive)
        for one in wanted:  # into the local cache: what the mirror does is not measured
            archive.fetch(one.name, one.version)
        cold = _make(folder, wanted)
        warm = [_make(folder, wanted) for _ in range(ROUNDS)]
        (path,) = (folder / "tables").iterdir()
        first, again = _lookups(path)
        rss, private = _memory(path)
    finally:
        shutil.rmtree(folder)
    return [
        from_samples("reference_cold_s", "s", [cold], against=Against("limit", 60)),
        from_samples("reference_warm_s", "s", warm, against=Against("limit", 5)),
        from_samples("lookups_per_s", "1/s", first, against=Against("at least", 1e6)),
        from_samples("lookups_few_per_s", "1/s", again),
        from_samples("reference_rss_mb", "MB", [rss], against=Against("limit", 64)),
        from_samples("reference_private_mb", "MB", [private]),
    ]


def _archive() -> Archive:
    now = dt.datetime.now(dt.UTC)
    return Archive(wiring.home() / "apt", now=now, refresh=Refresh.AUTO, also=[APT_CACHE])


def _wanted(archive: Archive) -> list[Wanted]:
    """Return 400 packages in the versions that are offered: a server, filled up from the cache."""
    names = {one.name for one in with_dependencies(archive, map(Wanted, SEEDS))}
    cached = {path.name.partition("_")[0] for path in APT_CACHE.glob("*.deb")}
    chosen: list[Wanted] = []
    for name in [*sorted(names), *sorted(cached - names)]:
        if len(chosen) == PACKAGES:
            break
        try:
            stanza, _ = archive.find(name)
        except EnvironmentFault:
            continue
        if name not in names and stanza.size > LARGEST:
            continue
        one = Wanted(name, stanza.version, stanza.architecture)
        if one not in chosen:
            chosen.append(one)
    return chosen


def _make(folder: Path, wanted: list[Wanted]) -> float:
    start = time.perf_counter()
    found = build_file_set("bench", _archive(), FileStore(folder), wanted)
    seconds = time.perf_counter() - start
    if found.missing:
        raise RuntimeError(f"not every package could be had: {found.missing[:5]}")
    return seconds


def entry(row: FileRow) -> bytes:
    """Return the template data (ima-ng) with which IMA would measure this file."""
    return HEAD + row.digest + (len(row.path) + 1).to_bytes(4, "little") + row.path + b"\0"


def _entries(table: FileArchive) -> list[bytes]:
    """Return the template data of every file, and again until there are enough."""
    datas = [entry(table.row(index)) for index in range(len(table))]
    datas *= -(-ENTRIES // len(datas))
    return [bytes(bytearray(data)) for data in datas[:ENTRIES]]  # each an object of its own


def _lookups(path: Path) -> tuple[list[float], list[float]]:
    table = open_table(path, path.stem)
    datas = _entries(table)
    references = ReferenceSet("bench", archives=(path.stem,))
    first: list[float] = []
    again: list[float] = []
    for _ in range(ROUNDS):
        accepted = file_knowledge(references, [table]).accepted(HEAD, 32, "little")
        start = time.thread_time()
        labels = look_up(accepted, datas)
        first.append(len(datas) / (time.thread_time() - start))
        if "" in labels:
            raise RuntimeError("a file of the table was not found in it")
        few = [datas[at : at + 10] for at in range(0, 10_000, 10)]
        for each in few:
            look_up(accepted, each)
        start = time.thread_time()
        for each in few:
            look_up(accepted, each)
        again.append(10_000 / (time.thread_time() - start))
    return first, again


_MEASURE = """
import json, sys
from pathlib import Path
from benchmarks.reference import HEAD, entry
from undercroft.packages.filestore import open_table
from undercroft.reference.layers import file_knowledge, look_up
from undercroft.reference.model import ReferenceSet

def memory():
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()[1:]
    rows = dict(line.split(":", 1) for line in lines)
    kb = lambda *names: sum(int(rows[name].split()[0]) for name in names)
    return kb("Rss"), kb("Private_Clean", "Private_Dirty")

path = Path(sys.argv[1])
before = memory()
table = open_table(path, path.stem)
known = file_knowledge(ReferenceSet("bench", archives=(path.stem,)), [table])
accepted = known.accepted(HEAD, 32, "little")
size = 1000
for start in range(0, len(table), size):
    rows = [table.row(i) for i in range(start, min(start + size, len(table)))]
    assert "" not in look_up(accepted, [entry(row) for row in rows])
after = memory()
print(json.dumps([(a - b) / 1024 for a, b in zip(after, before)]))
"""


def _memory(path: Path) -> tuple[float, float]:
    """Measure two processes with the same table open at once; return the second one's memory."""
    root = Path(__file__).parents[1]
    with path.open("rb") as stream:
        stream.read()  # into the page cache, where every process finds it
    keep = open_table(path, path.stem)  # shared with this process
    keep.look_up(keep.digests[:1], [keep.path(int(keep.row_path[0])) + b"\0"])
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path)], capture_output=True, check=True, cwd=root
    )
    rss, private = json.loads(done.stdout)
    return rss, private
