"""From a package's name to a package file that the archive's signature vouches for.

The chain, every link checked here and not left to apt: keyring -> signed Release file ->
SHA256 of the Packages index -> stanza -> SHA256 of the package file.
"""

from __future__ import annotations

import datetime as dt
import enum
import fcntl
import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from undercroft.base import EnvironmentFault, UndercroftError, VerificationError
from undercroft.formats import strict_json
from undercroft.packages.apt import DEBIAN_KEYRING, IndexTarget, PrivateApt, machine_freshness
from undercroft.packages.gpgv import read_signed
from undercroft.packages.index import PackagesIndex, Stanza
from undercroft.packages.release import FreshnessRule, SignedText, VerifiedRelease, verify_release
from undercroft.packages.verified import VerifiedPackage
from undercroft.reference.model import Grade, Provenance

LISTS_MAX_AGE_S = 24 * 3600.0
_SEEN_LIMIT = 1 << 20


class Refresh(enum.Enum):
    """When to ask the mirror for new lists."""

    AUTO = "auto"
    """If there are none, or they are a day old; old ones do if the mirror does not answer."""
    ALWAYS = "always"
    NEVER = "never"


class Transport(Protocol):
    """What fetches; :class:`undercroft.packages.apt.PrivateApt` is the real one."""

    def configure(self) -> None:
        """Make ready."""

    def update(self) -> None:
        """Fetch the lists.  Raises EnvironmentFault if any source failed."""

    def targets(self) -> tuple[IndexTarget, ...]:
        """Return the indexes that are on disk."""

    def resolve(self, wanted: Sequence[str]) -> tuple[tuple[str, str], ...]:
        """Return name and version of all that ``wanted`` needs on an empty system."""

    def download(self, name: str, version: str, architecture: str, into: Path) -> Path:
        """Fetch one package file and return its path."""


def verify_package(path: Path, stanza: Stanza) -> None:
    """Raise VerificationError ``archive.package`` unless the file is the one of ``stanza``."""
    if (size := path.stat().st_size) != stanza.size:
        raise VerificationError(
            "archive.package", f"{path.name} has another size", expected=stanza.size, got=size
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != stanza.sha256:
        raise VerificationError(
            "archive.package",
            f"{path.name} has another digest than the signed index says",
            expected=stanza.sha256,
            got=digest,
        )


def verified(stanza: Stanza, index: PackagesIndex, path: Path) -> VerifiedPackage:
    """Return the package at ``path``, whose digest was compared with ``stanza`` of ``index``."""
    return VerifiedPackage(
        stanza.name,
        stanza.version,
        stanza.architecture,
        path,
        stanza.sha256,
        Provenance(
            Grade.PACKAGE,
            package=stanza.name,
            version=stanza.version,
            origin=f"{index.origin}: {stanza.filename}",
            release_sha256=index.release.sha256,
            signer=index.release.signer,
            note=index.release.note,
        ),
    )


class Archive:
    """The packages of one Debian release, through the machine's apt, in the folder ``root``.

    ``now`` is the time that Release files are judged at; ``say`` is told what takes long.
    ``also`` are more folders where package files may lie (apt's own cache): what is in them is
    taken if its digest is right.
    """

    def __init__(
        self,
        root: Path,
        *,
        now: dt.datetime,
        refresh: Refresh = Refresh.AUTO,
        apt: Transport | None = None,
        rule: FreshnessRule | None = None,
        keyring: Path = DEBIAN_KEYRING,
        also: Sequence[Path] = (),
        say: Callable[[str], None] = lambda _text: None,
    ) -> None:
        self.root = root
        self.now = now
        self._apt: Transport = apt or PrivateApt(root, keyring=keyring)
        self._rule = rule
        self._keyring = keyring
        self._also = tuple(also)
        self._refresh = refresh
        self._say = say
        self._indexes: tuple[PackagesIndex, ...] | None = None
        self._refused: list[UndercroftError] = []

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Let one process at a time use the folder, as apt itself would insist on."""
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    # -- lists --------------------------------------------------------------------------------

    def _stamp(self) -> Path:
        return self.root / "state" / "updated"

    def _lists_are_old(self) -> bool:
        stamp = self._stamp()
        if not stamp.is_file():
            return True
        return not 0 <= time.time() - stamp.stat().st_mtime < LISTS_MAX_AGE_S

    def _update(self) -> None:
        if self._refresh is Refresh.NEVER:
            return
        if self._refresh is Refresh.AUTO and not self._lists_are_old():
            return
        self._say("fetching package lists")
        try:
            self._apt.update()
            self._stamp().touch()
        except EnvironmentFault as fault:
            # One source of several may fail; what the others gave is judged by its signature.
            self._refused.append(fault)

    def _read_seen(self) -> dict[str, dt.datetime]:
        path = self.root / "seen.json"
        if not path.is_file():
            return {}
        data = path.read_bytes()
        return strict_json.parse(data, dict[str, dt.datetime], "seen.json", limit=_SEEN_LIMIT)

    def _write_seen(self, seen: dict[str, dt.datetime]) -> None:
        path = self.root / "seen.json"
        temporary = path.with_suffix(".new")
        text = {name: date.isoformat() for name, date in sorted(seen.items())}
        temporary.write_text(json.dumps(text, indent=1) + "\n")
        temporary.replace(path)

    def _signed_release(self, target: IndexTarget) -> SignedText:
        stem = target.release_stem
        inline, plain = Path(stem + "InRelease"), Path(stem + "Release")
        if inline.is_file():
            return read_signed(inline, self._keyring)
        detached = Path(stem + "Release.gpg")
        if plain.is_file() and detached.is_file():
            return read_signed(plain, self._keyring, detached=detached)
        raise EnvironmentFault(f"apt kept no Release file for {target.suite}")

    def _load(self) -> tuple[PackagesIndex, ...]:
        self._apt.configure()
        self._update()
        rule = self._rule or machine_freshness()
        seen = self._read_seen()
        releases: dict[str, VerifiedRelease] = {}
        indexes = []
        for target in self._apt.targets():
            stem = target.release_stem
            if stem not in releases:
                releases[stem] = verify_release(
                    self._signed_release(target),
                    suite=target.suite,
                    now=self.now,
                    rule=rule,
                    last_seen=seen,
                )
            indexes.append(PackagesIndex(target.path.read_bytes(), releases[stem], target.meta_key))
        for verified in releases.values():
            seen[verified.release.lineage] = verified.release.date
        self._write_seen(seen)
        return tuple(indexes)

    @property
    def indexes(self) -> tuple[PackagesIndex, ...]:
        """The verified indexes, fetched first if need be.

        Raises VerificationError or FormatError if any link of the chain is wrong, and
        EnvironmentFault if apt could not fetch and nothing was there from before.
        """
        if self._indexes is None:
            with self._locked():
                self._indexes = self._load()
            if not self._indexes:
                raise EnvironmentFault(
                    "there are no package lists",
                    got="; ".join(str(fault) for fault in self._refused) or "nothing fetched",
                    remedy="check that `apt-get update` works on this machine",
                )
        return self._indexes

    # -- packages -----------------------------------------------------------------------------

    def find(self, name: str, version: str = "") -> tuple[Stanza, PackagesIndex]:
        """Return the newest package ``name`` (or the one of ``version``) and who offers it."""
        offers = [
            (stanza, index)
            for index in self.indexes
            for stanza in index.find(name)
            if not version or stanza.version == version
        ]
        if not offers:
            raise EnvironmentFault(
                f"no package {name}{' ' + version if version else ''} in this machine's sources",
                expected=f"in {', '.join(sorted({i.origin for i in self.indexes}))}",
                got="; ".join(str(fault) for fault in self._refused),
            )
        return max(offers, key=lambda offer: offer[0].order)

    def fetch(self, name: str, version: str = "") -> VerifiedPackage:
        """Return the package ``name`` as a file on disk, verified from the signature down.

        A file that is already there is used if its digest is right, and replaced otherwise.
        """
        stanza, index = self.find(name, version)
        return verified(stanza, index, self._file(stanza))

    def _file(self, stanza: Stanza) -> Path:
        quoted = stanza.version.replace(":", "%3a")
        name = f"{stanza.name}_{quoted}_{stanza.architecture}.deb"
        for folder in self._also:
            try:
                verify_package(folder / name, stanza)
            except (OSError, VerificationError):
                continue  # what is in a folder of others is no fault of the archive's
            return folder / name
        folder = self.root / "packages"
        path = folder / name
        with self._locked():
            try:
                verify_package(path, stanza)
            except (FileNotFoundError, VerificationError):
                path.unlink(missing_ok=True)
                self._say(f"fetching {stanza.name} {stanza.version}")
                self._apt.download(
                    stanza.name, stanza.version, stanza.architecture, folder
                ).replace(path)
                verify_package(path, stanza)
        return path

    def fetch_all(self, names: Iterable[str]) -> tuple[VerifiedPackage, ...]:
        """Fetch several packages; see :meth:`fetch`."""
        return tuple(self.fetch(name) for name in names)

    def fetch_closure(self, wanted: Sequence[str]) -> tuple[VerifiedPackage, ...]:
        """Fetch everything that ``wanted`` needs on an empty system, sorted by name.

        ``wanted`` are names or apt patterns; recommendations are left out.
        """
        _ = self.indexes  # apt answers from lists; they have to be there, and verified
        with self._locked():
            chosen = self._apt.resolve(wanted)
        return tuple(self.fetch(name, version) for name, version in chosen)
