"""A set's own files and its tables of packages, judged by as one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import pytest

from undercroft.base import Digest, FormatError, Grade, HashAlgorithm
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.reference import layers
from undercroft.reference.archive import FileArchive, FileFlag, PackageRecord, parse_file_archive
from undercroft.reference.archive_build import PackageFiles, build_file_archive
from undercroft.reference.corim import to_corim
from undercroft.reference.files import FileMatch, FileReferences
from undercroft.reference.layers import AcceptedRows, LayeredReferences, file_knowledge, look_up
from undercroft.reference.model import (
    PackageState,
    Provenance,
    ReferenceSet,
    ReferenceValue,
    merge,
)
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.reference.updates import Label, grade_name, parse_label

HEAD = b"\x28\0\0\0sha256:\0"


def sha256(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def table(*packages: tuple[str, str, dict[bytes, bytes]]) -> FileArchive:
    return parse_file_archive(
        build_file_archive(
            (
                PackageFiles(
                    PackageRecord(name, version),
                    tuple((path, sha256(text), FileFlag.NONE) for path, text in files.items()),
                )
                for name, version, files in packages
            ),
            LinuxHash.SHA256,
        )
    )


LIBC = {b"/usr/lib/libc.so.6": b"libc one", b"/usr/share/locale": b"same"}
LIBC_NEW = {b"/usr/lib/libc.so.6": b"libc two", b"/usr/share/locale": b"same"}
TABLE = table(
    ("libc6", "1", LIBC),
    ("libc6", "2", LIBC_NEW),
    ("bash", "5", {b"/usr/bin/bash": b"bash", b"/usr/bin/rbash": b"bash"}),
)
OLD = PackageState("libc6", "1", 1_000, "2", ("DSA-1",))
INIT = ReferenceValue(
    (Digest(HashAlgorithm.SHA256, sha256(b"init")),), "init", Provenance(Grade.BUILT, "us", "1")
)


def known(*states: PackageState, tables: Sequence[FileArchive] = (TABLE,)) -> LayeredReferences:
    names = tuple(one.id.hex() for one in tables)
    references = ReferenceSet("set", files={"/init": (INIT,)}, archives=names, states=states)
    result = file_knowledge(references, tables)
    assert isinstance(result, LayeredReferences)
    return result


def data(path: bytes, text: bytes, order: Literal["little", "big"] = "little") -> bytes:
    return HEAD + sha256(text) + (len(path) + 1).to_bytes(4, order) + path + b"\0"


def labels(of: LayeredReferences, *datas: bytes) -> list[str]:
    return look_up(of.accepted(HEAD, 32, "little"), datas)


def measured(text: bytes, kind: str = "ima") -> FileDigest:
    return FileDigest(kind, "sha256", LinuxHash.SHA256, sha256(text))


def test_each_file_by_its_grade() -> None:
    of = known()
    asked = [
        data(b"/init", b"init"),
        data(b"/usr/bin/bash", b"bash"),
        data(b"/usr/bin/bash", b"init"),
        data(b"/usr/lib/libc.so.6", b"libc two"),
    ]
    assert labels(of, *asked) == ["built", "package", "", "package"]
    assert labels(of, *asked) == ["built", "package", "", "package"]  # now remembered
    accepted = of.accepted(HEAD, 32, "little")
    assert [accepted.get(one) for one in asked] == ["built", "package", None, "package"]
    assert accepted is of.accepted(HEAD, 32, "little")
    assert len(accepted) == 1 + 6
    assert len(of) == 1 + 4
    assert labels(of) == []


@pytest.mark.parametrize(
    "bent",
    [
        b"",
        HEAD,
        data(b"/usr/bin/bash", b"bash")[:-1],
        data(b"/usr/bin/bash", b"bash") + b"\0",
        data(b"/usr/bin/bash", b"bash", "big"),
        data(b"/usr/bin/bash", b"bash").replace(b"sha256:", b"sha257:"),
        HEAD + sha256(b"bash") + (0).to_bytes(4, "little"),
    ],
    ids=repr,
)
def test_an_entry_of_another_form_is_not_known(bent: bytes) -> None:
    assert labels(known(), bent) == [""]
    good = data(b"/usr/bin/bash", b"bash")
    assert labels(known(), good, bent, good) == ["package", "", "package"]


def test_entries_in_big_endian() -> None:
    accepted = known().accepted(HEAD, 32, "big")
    assert look_up(accepted, [data(b"/usr/bin/bash", b"bash", "big")]) == ["package"]


def test_a_form_that_no_table_has() -> None:
    of = known()
    assert look_up(of.accepted(b"\x1a\0\0\0sha1:\0", 20, "little"), [b"x"]) == [""]
    assert look_up(of.accepted(HEAD, 31, "little"), [b"x"]) == [""]
    assert look_up(of.accepted(b"\0\0\0\0what:\0", 32, "little"), [b"x"]) == [""]


OTHER = table(("zsh", "5", {b"/usr/bin/zsh": b"zsh"}))


@pytest.mark.parametrize("whole", [1, 1024])
@pytest.mark.parametrize("own", [True, False])
def test_several_tables_and_whole_lists(
    monkeypatch: pytest.MonkeyPatch, whole: int, own: bool
) -> None:
    monkeypatch.setattr(layers, "WHOLE_LIST", whole)
    tables = (TABLE, OTHER)
    names = tuple(one.id.hex() for one in tables)
    files = {"/init": (INIT,)} if own else {}
    of = file_knowledge(ReferenceSet("set", files=files, archives=names), tables)
    accepted = of.accepted(HEAD, 32, "little")
    asked = [
        data(b"/usr/bin/zsh", b"zsh"),
        data(b"/init", b"init"),
        data(b"/usr/bin/bash", b"bash"),
        data(b"/usr/bin/bash", b"evil"),
    ]
    expected = ["package", "built" if own else "", "package", ""]
    for _ in range(2):
        assert look_up(accepted, asked) == expected
    assert look_up(accepted, [asked[2]] * 2) == ["package"] * 2
    assert look_up(accepted, [asked[0], *[asked[2]] * 2]) == ["package"] * 3
    assert look_up(accepted, []) == []


def test_every_entry_of_a_list_with_versions_that_are_told_apart() -> None:
    of = known(OLD, PackageState("bash", "4", 7, "5"))
    found = labels(of, data(b"/usr/bin/bash", b"bash"), data(b"/usr/bin/rbash", b"bash"))
    assert {parse_label(text).package for text in found} == {"bash"}


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "REMEMBERED", 1)
    of = known()
    asked = [data(b"/usr/bin/bash", b"bash"), data(b"/usr/bin/rbash", b"bash")]
    assert labels(of, *asked) == labels(of, *asked) == ["package", "package"]
    accepted = of.accepted(HEAD, 32, "little")
    assert isinstance(accepted, AcceptedRows)
    for _ in range(3):
        labels(of, data(b"/usr/lib/libc.so.6", b"libc one"))
        labels(of, data(b"/usr/lib/libc.so.6", b"libc two"))
        assert len(accepted._known) <= 3


def test_a_superseded_version_is_looked_at_closely() -> None:
    of = known(OLD)
    assert labels(of, data(b"/usr/lib/libc.so.6", b"libc one")) == [""]
    match = of.compare(b"/usr/lib/libc.so.6", measured(b"libc one"))
    assert match.match is FileMatch.KNOWN
    label = parse_label(of.label(match.expected[0].provenance))
    assert label == Label(Grade.PACKAGE, "libc6", "1", 1_000, "2", ("DSA-1",))
    assert not label.is_current
    # The file that did not change is the new version's too.
    match = of.compare(b"/usr/share/locale", measured(b"same"))
    assert match.expected[0].provenance.version == "2"
    (new,) = labels(of, data(b"/usr/lib/libc.so.6", b"libc two"))
    assert parse_label(new) == Label(Grade.PACKAGE, "libc6", "2")
    assert grade_name(new) == grade_name("package") == "package"


def test_the_set_s_own_files_have_states_too() -> None:
    state = PackageState("us", "1", 5, "2")
    references = ReferenceSet("set", files={"/init": (INIT,)}, states=(state,))
    of = file_knowledge(references)
    assert isinstance(of, FileReferences)
    (label,) = look_up(of.accepted(HEAD, 32, "little"), [data(b"/init", b"init")])
    assert parse_label(label).superseded == 5
    plain = file_knowledge(replace(references, states=()))
    assert plain.content_id != of.content_id


def test_hashes_are_kept_of_the_commonest_labels_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("undercroft.reference.files.HASHED_LABELS", 1)
    other = replace(INIT, provenance=Provenance(Grade.PACKAGE, "other", "1"))
    files = {"/init": (INIT,), "/a": (other,), "/b": (other,)}
    names = (TABLE.id.hex(),)
    for of in (
        file_knowledge(ReferenceSet("set", files=files)),
        file_knowledge(ReferenceSet("set", files=files, archives=names), [TABLE]),
    ):
        ((label, hashes),) = of.template_hashes(HEAD, 32, "little")
        assert (label, len(hashes)) == ("package", 2)


def test_what_differs_is_told_from_every_place() -> None:
    of = known(OLD)
    assert of.compare(b"/init", measured(b"init")).match is FileMatch.KNOWN
    other = of.compare(b"/init", measured(b"bash"))
    assert other.match is FileMatch.OTHER_CONTENT
    assert [e.path for e in other.elsewhere] == [b"/usr/bin/bash", b"/usr/bin/rbash"]
    other = of.compare(b"/usr/lib/libc.so.6", measured(b"evil"))
    assert other.match is FileMatch.OTHER_CONTENT
    assert [e.provenance.version for e in other.expected] == ["2", "1"]
    moved = of.compare(b"/tmp/x", measured(b"bash"))
    assert (moved.match, len(moved.elsewhere)) == (FileMatch.OTHER_PATH, 2)
    assert of.compare(b"/tmp/x", measured(b"?")).match is FileMatch.UNKNOWN
    verity = of.compare(b"/usr/bin/bash", measured(b"bash", "verity"))
    assert verity.match is FileMatch.OTHER_ALGORITHM
    assert of.compare(b"/x", measured(b"bash", "verity")).match is FileMatch.UNKNOWN


def test_a_table_in_another_algorithm() -> None:
    one = PackageFiles(
        PackageRecord("bash", "5"),
        ((b"/usr/bin/bash", hashlib.sha512(b"bash").digest(), FileFlag.NONE),),
    )
    of = known(tables=[parse_file_archive(build_file_archive([one], LinuxHash.SHA512))])
    assert labels(of, data(b"/usr/bin/bash", b"bash")) == [""]
    assert of.compare(b"/usr/bin/bash", measured(b"bash")).match is FileMatch.OTHER_ALGORITHM
    assert of.compare(b"/x", measured(b"bash")).match is FileMatch.UNKNOWN


@pytest.mark.parametrize(
    ("path", "near"),
    [
        (b"/sbin/init", (b"/init",)),
        (b"/opt/bash", (b"/usr/bin/bash",)),
        (b"/usr/bin/bas", (b"/usr/bin/bash",)),
        (b"/zzz", ()),
    ],
)
def test_the_nearest_path_of_all(path: bytes, near: tuple[bytes, ...]) -> None:
    assert known().nearest(path) == near


def test_exactly_the_tables_that_the_set_names() -> None:
    named = ReferenceSet("set", archives=(TABLE.id.hex(),))
    with pytest.raises(ValueError, match="not the file tables"):
        file_knowledge(named)
    with pytest.raises(ValueError, match="not the file tables"):
        file_knowledge(ReferenceSet("set"), [TABLE])


def test_equal_ids_say_the_same() -> None:
    assert known().content_id == known().content_id
    assert known().content_id != known(OLD).content_id
    assert known().content_id != known(tables=[table(("bash", "5", {b"/x": b"y"}))]).content_id


def test_tables_and_states_are_written_and_merged() -> None:
    one = ReferenceSet("one", archives=(TABLE.id.hex(),), states=(OLD,))
    assert parse_reference_set(encode_reference_set(one)) == one
    assert not one.is_empty
    both = merge("both", [one, ReferenceSet("two", archives=("ab" * 32,), states=(OLD,))])
    assert (both.archives, both.states) == ((TABLE.id.hex(), "ab" * 32), (OLD,))
    with pytest.raises(ValueError, match="no form in a CoRIM"):
        to_corim(one)


@pytest.mark.parametrize("name", ["", "AB" * 32, "ab" * 31, "../" + "a" * 61])
def test_the_name_of_a_table(name: str) -> None:
    with pytest.raises(ValueError, match="not the SHA-256"):
        ReferenceSet("set", archives=(name,))
    text = encode_reference_set(ReferenceSet("s", archives=("ab" * 32,)))
    with pytest.raises(FormatError, match="not the SHA-256"):
        parse_reference_set(text.replace(b"ab" * 32, name.encode()))


@pytest.mark.parametrize(
    "state", [("", "1", 1), ("a", "", 1), ("a", "1", 0), ("a", "1", -1)], ids=repr
)
def test_a_state_that_says_nothing(state: tuple[str, str, int]) -> None:
    with pytest.raises(ValueError, match=r"needs its name|superseded by nothing"):
        PackageState(*state)
