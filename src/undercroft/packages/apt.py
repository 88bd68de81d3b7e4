"""The machine's ``apt-get`` with lists, cache and state of our own.

Transport (proxies, certificates, credentials) is the machine's own apt configuration; where
packages are kept and which packages are known is ours, so that root is not needed and nothing
that is installed changes.  apt's verdict on signatures is not relied on: see ``archive``.
"""

from __future__ import annotations

import datetime as dt
import os
import platform
import re
import shlex
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from undercroft.base import EnvironmentFault
from undercroft.packages.release import FreshnessRule
from undercroft.packages.sources import wanted_sources, write_deb822

DEBIAN_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_KEYRING_NAMES = ("debian-archive-",)
UPDATE_TIMEOUT_S = 600.0
DOWNLOAD_TIMEOUT_S = 900.0

_INSTALLS = re.compile(r"^Inst ([a-z0-9][a-z0-9+.-]+) \(([A-Za-z0-9.+:~-]+) ", re.M)

_CONFIGURATION = """\
// Written by undercroft: apt with its state in this folder.
Dir::State "{root}/state";
Dir::State::status "{root}/state/status";
Dir::Cache "{root}/cache";
Dir::Etc::sourcelist "{root}/etc/sources.list";
Dir::Etc::sourceparts "{root}/etc/sources.list.d";
Dir::Etc::preferences "{root}/etc/preferences";
Dir::Etc::preferencesparts "{root}/etc/preferences.d";
APT::Architecture "{architecture}";
#clear APT::Architectures;
APT::Architectures {{ "{architecture}"; }};
APT::Sandbox::User "{user}";
// The Release file names the digest of the index as it is when decompressed.
Acquire::GzipIndexes "false";
Acquire::Languages "none";
Acquire::PDiffs "false";
Acquire::Retries "2";
// Hooks of the machine are for its own lists.
#clear APT::Update::Pre-Invoke;
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
"""


@dataclass(frozen=True, slots=True)
class IndexTarget:
    """A Packages index that apt knows of (``apt-get indextargets``)."""

    meta_key: str
    suite: str
    path: Path

    @property
    def release_stem(self) -> str:
        """The path of the suite's Release file, up to the word InRelease or Release."""
        return str(self.path).removesuffix(self.meta_key.replace("/", "_"))


def machine_architecture() -> str:
    """Return the Debian name of this machine's architecture."""
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine())


def machine_codename() -> str:
    """Return the codename of the release that this machine runs (``bookworm``)."""
    return platform.freedesktop_os_release().get("VERSION_CODENAME", "")


def _apt_config(*pairs: str) -> dict[str, str]:
    """Return ``apt-config shell`` variables; without apt, say so."""
    try:
        done = subprocess.run(
            ["apt-config", "shell", *pairs], capture_output=True, text=True, timeout=60, check=True
        )
    except (OSError, subprocess.SubprocessError) as error:
        raise EnvironmentFault(
            "apt does not work here", got=error, remedy="packages come through Debian's apt"
        ) from error
    lines = [line.partition("=")[::2] for line in done.stdout.splitlines()]
    return {name: "".join(shlex.split(value)) for name, value in lines}


def machine_freshness() -> FreshnessRule:
    """Return what the machine's apt configuration says of the age of Release files."""
    values = _apt_config(
        "VALID", "Acquire::Check-Valid-Until", "DATE", "Acquire::Check-Date",
        "FUTURE", "Acquire::Max-FutureTime",
    )  # fmt: skip
    off = {"false", "no", "0", "off", "without", "disable"}
    future = values.get("FUTURE", "")
    return FreshnessRule(
        check_valid_until=values.get("VALID", "").lower() not in off,
        check_date=values.get("DATE", "").lower() not in off,
        max_future=dt.timedelta(seconds=int(future) if future.isdecimal() else 10),
    )


def _machine_source_files() -> list[tuple[str, str]]:
    values = _apt_config("LIST", "Dir::Etc::sourcelist/f", "PARTS", "Dir::Etc::sourceparts/d")
    paths = [Path(values.get("LIST", "/etc/apt/sources.list"))]
    parts = Path(values.get("PARTS", "/etc/apt/sources.list.d"))
    paths += sorted(path for end in ("list", "sources") for path in parts.glob(f"*.{end}"))
    return [(path.name, path.read_text(errors="replace")) for path in paths if path.is_file()]


class PrivateApt:
    """``apt-get`` over the folder ``root``, for the packages of one Debian release."""

    def __init__(self, root: Path, *, codename: str = "", keyring: Path = DEBIAN_KEYRING) -> None:
        self.root = root.absolute()
        self.codename = codename or machine_codename()
        self.keyring = keyring

    def configure(self) -> None:
        """Write the private configuration.  Raises EnvironmentFault if no source would do."""
        if re.search(r"[\s\"]", str(self.root)):
            raise EnvironmentFault("apt cannot use a folder with a space or quote", got=self.root)
        for name in ("state/lists/partial", "cache/archives/partial", "etc/sources.list.d"):
            (self.root / name).mkdir(parents=True, exist_ok=True)
        (self.root / "etc" / "preferences.d").mkdir(exist_ok=True)
        (self.root / "state" / "status").touch()
        sources = wanted_sources(
            _machine_source_files(), codename=self.codename, keyring_names=_KEYRING_NAMES
        )
        if not sources:
            raise EnvironmentFault(
                f"this machine's apt has no source for Debian {self.codename or '(unknown)'}",
                remedy="add one under /etc/apt/sources.list.d",
            )
        text = write_deb822(sources, str(self.keyring))
        (self.root / "etc" / "sources.list.d" / "copied.sources").write_text(text)
        # As root, apt would drop to a user who may have no way into this folder.
        user = "root" if os.geteuid() == 0 else ""
        configuration = _CONFIGURATION.format(
            root=self.root, architecture=machine_architecture(), user=user
        )
        (self.root / "apt.conf").write_text(configuration)

    def sources(self) -> str:
        """Return what is asked for packages, as text of a ``.sources`` file (deb822)."""
        return (self.root / "etc" / "sources.list.d" / "copied.sources").read_text()

    def _run(self, *arguments: str, timeout: float, folder: Path | None = None) -> str:
        command = ["apt-get", "-c", str(self.root / "apt.conf"), "-q", *arguments]
        environment = {**os.environ, "LC_ALL": "C.UTF-8", "DEBIAN_FRONTEND": "noninteractive"}
        try:
            done = subprocess.run(
                command, capture_output=True, text=True, errors="replace", timeout=timeout,
                check=False, cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            )  # fmt: skip
        except FileNotFoundError as error:
            raise EnvironmentFault("apt-get is not here", remedy="run this on Debian") from error
        except subprocess.TimeoutExpired as error:
            raise EnvironmentFault(
                f"apt-get {arguments[0]} did not end", expected=f"within {timeout:.0f} s"
            ) from error
        if done.returncode:
            complaints = [line for line in done.stderr.splitlines() if line[:2] in ("E:", "W:")]
            raise EnvironmentFault(
                f"apt-get {arguments[0]} failed", got="; ".join(complaints[-3:]) or done.returncode
            )
        return done.stdout

    def update(self) -> None:
        """Fetch the lists.  Raises EnvironmentFault if any source failed."""
        self._run("update", timeout=UPDATE_TIMEOUT_S)

    def targets(self) -> tuple[IndexTarget, ...]:
        """Return the Packages indexes that are on disk."""
        text = self._run(
            "indextargets", "--format", "$(METAKEY)\t$(RELEASE)\t$(FILENAME)",
            "Created-By: Packages", timeout=60,
        )  # fmt: skip
        rows = [line.split("\t") for line in text.splitlines() if line.count("\t") == 2]
        found = [IndexTarget(key, suite.rstrip("/"), Path(path)) for key, suite, path in rows]
        return tuple(target for target in found if target.path.is_file())

    def resolve(self, wanted: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return name and version of all that ``wanted`` needs on an empty system, sorted.

        ``wanted`` are names or apt patterns (``?essential``).  Recommendations are left out.
        What apt answers is only a choice: each package is verified when it is fetched.
        """
        text = self._run(
            "-s", "-o", "APT::Install-Recommends=false", "install", *wanted, timeout=120
        )  # fmt: skip
        return tuple(sorted({(m[1], m[2]) for m in _INSTALLS.finditer(text)}))

    def download(self, name: str, version: str, architecture: str, into: Path) -> Path:
        """Fetch one package file into the folder ``into`` and return its path there."""
        into.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=into, prefix=".fetch-") as folder:
            qualified = name if architecture == "all" else f"{name}:{architecture}"
            self._run(
                "download", f"{qualified}={version}",
                timeout=DOWNLOAD_TIMEOUT_S, folder=Path(folder),
            )  # fmt: skip
            files = list(Path(folder).glob("*.deb"))
            if len(files) != 1:
                raise EnvironmentFault(f"apt-get download {qualified} gave {len(files)} files")
            return Path(shutil.move(files[0], into / files[0].name))
