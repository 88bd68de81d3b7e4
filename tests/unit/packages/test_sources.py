from __future__ import annotations

from undercroft.packages.sources import Source, wanted_sources, write_deb822

MIRROR = "http://mirror.example/debian"


def _wanted(*files: tuple[str, str]) -> tuple[Source, ...]:
    return wanted_sources(files, codename="bookworm", keyring_names=("debian-archive-",))


def test_one_line_entries() -> None:
    text = f"""
# a comment
deb {MIRROR} bookworm main contrib   # with a comment
deb-src {MIRROR} bookworm main
deb [arch=amd64 signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] {MIRROR} bookworm-updates main
deb [signed-by=/usr/share/keyrings/other.gpg] https://other.example bookworm main
deb https://cloud.example cloud-sdk-bookworm main
nonsense
"""  # noqa: E501
    assert _wanted(("sources.list", text)) == (
        Source(MIRROR, "bookworm", ("main", "contrib")),
        Source(MIRROR, "bookworm-updates", ("main",)),
    )


def test_deb822_entries() -> None:
    text = f"""\
Types: deb deb-src
# http://snapshot.example/
URIs: {MIRROR} http://second.example
Suites: bookworm bookworm-updates
Components: main
Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg

# only a comment

Types: deb
URIs: https://other.example
Suites: bookworm
Components: main
Signed-By: /usr/share/keyrings/other.gpg

Types: deb
URIs: {MIRROR}
Suites: bookworm-security
Enabled: no

Types: deb-src
URIs: {MIRROR}
Suites: bookworm-security
"""
    found = _wanted(("debian.sources", text))
    assert [(s.uri, s.suite) for s in found] == [
        (MIRROR, "bookworm"),
        (MIRROR, "bookworm-updates"),
        ("http://second.example", "bookworm"),
        ("http://second.example", "bookworm-updates"),
    ]


def test_a_file_that_cannot_be_read_does_not_hide_the_others() -> None:
    good = ("a.list", f"deb {MIRROR} stable main")
    broken = ("b.sources", "Types deb\nURIs: x")
    typeless = ("c.sources", "URIs: x\nSuites: bookworm")
    assert _wanted(broken, typeless, good) == (Source(MIRROR, "stable", ("main",)),)


def test_backports_and_other_releases_are_left_out() -> None:
    text = "\n".join(f"deb {MIRROR} {suite} main" for suite in ("bookworm-backports", "trixie"))
    assert _wanted(("a.list", text)) == ()


def test_what_is_written_is_read_back_with_our_keyring() -> None:
    sources = (
        Source(MIRROR, "bookworm", ("main", "contrib")),
        Source(MIRROR, "stable/updates", ()),
    )
    text = write_deb822(sources, "/usr/share/keyrings/debian-archive-keyring.gpg")
    assert _wanted(("x.sources", text)) == sources
    assert text.count("Signed-By: /usr/share/keyrings/debian-archive-keyring.gpg") == 2
