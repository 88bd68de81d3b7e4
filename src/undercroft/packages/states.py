"""Which packages are of today: compared with what the archive offers, and with advisories."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from debian.debian_support import Version

from undercroft.packages.advisories import Advisory
from undercroft.packages.index import PackagesIndex
from undercroft.reference.archive import PackageRecord
from undercroft.reference.model import PackageState

_SECURITY = "-security"
_KERNEL_ABI = re.compile(r"-\d+\.\d+\.\d+-\d+(?=-|$)")


@dataclass(frozen=True, slots=True)
class Offer:
    """A version that an archive offers, or did.

    ``since`` is when it appeared at the latest (Unix s): when the package was made, or the date
    of the Release file that was seen to offer it.  ``security`` says that a suite for security
    updates offers it, and names that.
    """

    version: str
    since: int
    security: str = ""

    @property
    def order(self) -> Version:
        """A key that compares as dpkg compares versions."""
        return Version(self.version)


def series_of(name: str) -> str:
    """Return what a package's name has in common with its successor's.

    A kernel's package has its ABI in its name (linux-image-6.1.0-56-amd64), so that an update is
    a package of another name.
    """
    return _KERNEL_ABI.sub("-*", name) if name.startswith("linux-") else name


def all_offers(names: Iterable[str], indexes: Sequence[PackagesIndex]) -> dict[str, list[Offer]]:
    """Return every version that ``indexes`` offer of each series that ``names`` belong to."""
    wanted = {series_of(name) for name in names}
    offered: dict[str, set[str]] = {series: {series} for series in wanted}
    for index in indexes if any("*" in series for series in wanted) else ():
        for name in index.names:
            if name.startswith(b"linux-") and (text := name.decode(errors="replace")):
                offered.get(series_of(text), set()).add(text)
    return {
        series: [offer for name in sorted(found) for offer in offers_of(name, indexes)]
        for series, found in offered.items()
    }


def offers_of(name: str, indexes: Iterable[PackagesIndex]) -> list[Offer]:
    """Return every version of the package ``name`` in ``indexes``."""
    return [
        Offer(
            stanza.version,
            int(index.release.release.date.timestamp()),
            index.release.origin if _is_security(index) else "",
        )
        for index in indexes
        for stanza in index.find(name)
    ]


def _is_security(index: PackagesIndex) -> bool:
    release = index.release.release
    return release.codename.endswith(_SECURITY) or release.suite.endswith(_SECURITY)


def states_of(
    records: Sequence[PackageRecord],
    offers: Mapping[str, Sequence[Offer]],
    advisories: Iterable[Advisory],
    release: str,
) -> tuple[PackageState, ...]:
    """Return the states of ``records`` that are not current, by name and version.

    ``offers`` are versions by series (:func:`series_of`), ``release`` is the distribution's
    codename, whose ``advisories`` count.  A version that the suite for security updates replaced
    counts as vulnerable as well: nothing is uploaded there for another reason.
    """
    by_source: dict[str, list[Advisory]] = {}
    for advisory in advisories:
        if advisory.release == release:
            by_source.setdefault(advisory.source, []).append(advisory)
    known: dict[str, list[Offer]] = {name: list(them) for name, them in offers.items()}
    for record in records:
        if record.made:
            series = series_of(record.package)
            known.setdefault(series, []).append(Offer(record.version, record.made))
    states = {
        (record.package, record.version): _state(
            record, known.get(series_of(record.package), ()), by_source.get(record.source, ())
        )
        for record in records
    }
    return tuple(state for _, state in sorted(states.items()) if state is not None)


def _state(
    record: PackageRecord, known: Iterable[Offer], advisories: Iterable[Advisory]
) -> PackageState | None:
    mine, source = Version(record.version), Version(record.source_version)
    newer = sorted((offer for offer in known if offer.order > mine), key=lambda o: o.order)
    missing = {a.id: None for a in advisories if source < Version(a.version)}
    missing |= {f"{o.security}: {record.package} {o.version}": None for o in newer if o.security}
    if not newer and not missing:
        return None
    first = [offer.since for offer in newer if offer.version == newer[0].version]
    return PackageState(
        record.package,
        record.version,
        min(first, default=0),
        newer[-1].version if newer else "",
        tuple(missing),
    )
