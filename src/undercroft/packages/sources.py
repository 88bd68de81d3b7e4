"""Which of the machine's package sources can give what we accept.

Pure: text of ``sources.list(5)`` files in, entries out.  An entry is kept if it could be of the
wanted release and signed by the accepted keyring; what a source really is, its signature tells.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from undercroft.base import FormatError
from undercroft.packages.deb822 import parse_stanza

_ONE_LINE = re.compile(r"deb\s+(?:\[([^\]]*)\]\s*)?(\S+)\s+(\S+)((?:\s+[^\s#]+)*)\s*(?:#.*)?")
_ALIASES = frozenset({"stable", "oldstable", "oldoldstable", "testing"})
_POCKETS = ("", "-updates", "-security", "/updates")


@dataclass(frozen=True, slots=True)
class Source:
    """One place to fetch from; ``components`` is empty for a suite that is an exact path."""

    uri: str
    suite: str
    components: tuple[str, ...]


def _is_wanted(suite: str, codename: str, keyring_names: Iterable[str], signed_by: str) -> bool:
    pockets = {name + pocket for name in (codename, *_ALIASES) for pocket in _POCKETS}
    if suite not in pockets:
        return False
    return not signed_by or any(name in signed_by for name in keyring_names)


def parse_one_line(text: str) -> Iterator[tuple[Source, str]]:
    """Yield the ``deb`` entries of a ``.list`` file with what their signed-by option says.

    Lines that are no ``deb`` entry (comments, ``deb-src``) are passed over.
    """
    for line in text.splitlines():
        if match := _ONE_LINE.fullmatch(line.strip()):
            options = dict(word.partition("=")[::2] for word in (match[1] or "").split())
            source = Source(match[2], match[3], tuple(match[4].split()))
            yield source, options.get("signed-by", "")


def parse_deb822(text: str) -> Iterator[tuple[Source, str]]:
    """Yield the entries of a ``.sources`` file with what their Signed-By field says.

    Raises FormatError for a stanza that cannot be read.
    """
    for block in re.split(r"\n(?:[ \t]*\n)+", "\n" + text.replace("\r\n", "\n")):
        lines = [line for line in block.splitlines() if line.strip()]
        if all(line.startswith("#") for line in lines):
            continue
        fields = parse_stanza("\n".join(lines), "deb822 sources", comments=True)
        if fields.get("enabled", "yes").lower() == "no" or "deb" not in fields["types"].split():
            continue
        for uri in fields.get("uris", "").split():
            for suite in fields.get("suites", "").split():
                components = tuple(fields.get("components", "").split())
                yield Source(uri, suite, components), fields.get("signed-by", "")


def wanted_sources(
    files: Iterable[tuple[str, str]], *, codename: str, keyring_names: Iterable[str]
) -> tuple[Source, ...]:
    """Return the sources of ``files`` (name, text) for the release ``codename``, each once.

    A source that names another keyring than ``keyring_names`` cannot give a file that we accept
    and is left out; so is a file that cannot be read as apt reads it.
    """
    names = tuple(keyring_names)
    found: dict[Source, None] = {}
    for name, text in files:
        parse = parse_deb822 if name.endswith(".sources") else parse_one_line
        try:
            entries = list(parse(text))
        except (FormatError, KeyError):
            continue  # apt says the same of it at every update; another source may do
        for source, signed_by in entries:
            if _is_wanted(source.suite, codename, names, signed_by):
                found[source] = None
    return tuple(found)


def write_deb822(sources: Iterable[Source], keyring: str) -> str:
    """Write ``sources`` as a ``.sources`` file in which everything is signed by ``keyring``."""
    stanzas = [
        "\n".join(
            [
                "Types: deb",
                f"URIs: {source.uri}",
                f"Suites: {source.suite}",
                *([f"Components: {' '.join(source.components)}"] if source.components else []),
                f"Signed-By: {keyring}",
            ]
        )
        for source in sources
    ]
    return "\n\n".join(stanzas) + "\n"
