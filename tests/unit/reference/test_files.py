from __future__ import annotations

import hashlib

import pytest

from undercroft.base import Digest, Grade, HashAlgorithm
from undercroft.formats.ima import FileDigest, LinuxHash
from undercroft.reference.files import FileMatch, FileReferences, compile_files
from undercroft.reference.model import Provenance, ReferenceValue

SHA1, SHA256 = HashAlgorithm.SHA1, HashAlgorithm.SHA256
COREUTILS = Provenance(Grade.PACKAGE, "coreutils", "9.1-1")
KLIBC = Provenance(Grade.BUILT, "klibc-utils", "2.0.12-1")
SEEN = Provenance(Grade.OBSERVED, note="seen on a clean machine")


def value(
    content: bytes, provenance: Provenance = COREUTILS, *more: HashAlgorithm
) -> ReferenceValue:
    digests = tuple(algorithm.digest(content) for algorithm in (SHA256, *more))
    return ReferenceValue(digests, "a file", provenance)


def compiled() -> FileReferences:
    return compile_files(
        {
            "/usr/bin/mkdir": (value(b"mkdir"), value(b"klibc mkdir", KLIBC)),
            "/usr/bin/cat": (value(b"cat"),),
            "/usr/share/doc/read me": (value(b"read me"),),
            "/usr/lib/bad\udcff": (value(b"bad"),),
            "/etc/old": (ReferenceValue((SHA1.digest(b"old"),), "a file", COREUTILS),),
            "/usr/bin/cp": (value(b"cat"),),
            "/opt/one": (value(b"one"),),
        },
        "debian",
    )


def measured(content: bytes, name: str = "sha256", kind: str = "ima") -> FileDigest:
    algorithm = LinuxHash.from_name(name.encode())
    return FileDigest(kind, name, algorithm, hashlib.new(name, content).digest())


def test_a_known_file_matches() -> None:
    found = compiled().compare(b"/usr/bin/mkdir", measured(b"klibc mkdir"))
    assert found.match is FileMatch.KNOWN
    assert [e.provenance for e in found.expected] == [KLIBC]


def test_another_content_tells_what_was_expected_and_whose_it_is() -> None:
    found = compiled().compare(b"/usr/bin/mkdir", measured(b"cat"))
    assert found.match is FileMatch.OTHER_CONTENT
    assert {e.digest for e in found.expected} == {
        hashlib.sha256(b"mkdir").digest(),
        hashlib.sha256(b"klibc mkdir").digest(),
    }
    assert [e.path for e in found.elsewhere] == [b"/usr/bin/cat", b"/usr/bin/cp"]


def test_another_algorithm_cannot_be_compared() -> None:
    found = compiled().compare(b"/etc/old", measured(b"old"))
    assert found.match is FileMatch.OTHER_ALGORITHM
    assert [e.algorithm for e in found.expected] == [LinuxHash.SHA1]
    assert compiled().compare(b"/etc/old", measured(b"old", "sha1")).match is FileMatch.KNOWN


def test_an_fs_verity_digest_cannot_be_compared() -> None:
    found = compiled().compare(b"/usr/bin/cat", measured(b"cat", kind="verity"))
    assert found.match is FileMatch.OTHER_ALGORITHM
    found = compiled().compare(b"/nowhere", measured(b"cat", kind="verity"))
    assert found.match is FileMatch.UNKNOWN


def test_a_known_content_at_another_path() -> None:
    found = compiled().compare(b"/tmp/x", measured(b"one"))
    assert found.match is FileMatch.OTHER_PATH
    assert [(e.path, e.provenance) for e in found.elsewhere] == [(b"/opt/one", COREUTILS)]


def test_neither_path_nor_content_is_known() -> None:
    found = compiled().compare(b"/tmp/x", measured(b"?"))
    assert (found.match, found.expected, found.elsewhere) == (FileMatch.UNKNOWN, (), ())
    unknown = FileDigest("ima", "blake3", None, bytes(32))
    assert compiled().compare(b"/tmp/x", unknown).match is FileMatch.UNKNOWN


NEAREST = {
    b"/usr/sbin/mkdir": (b"/usr/bin/mkdir",),
    b"/usr/bin/cap": (b"/usr/bin/cat",),
    b"/opt/onf": (b"/opt/one",),
    b"/zzz": (),
    b"/aaa": (),
    b"relative": (),
    b"": (),
}


@pytest.mark.parametrize("path", NEAREST, ids=repr)
def test_the_nearest_known_path(path: bytes) -> None:
    assert compiled().nearest(path) == NEAREST[path]


def test_no_references_at_all() -> None:
    empty = compile_files({})
    assert len(empty) == 0
    assert empty.compare(b"/x", measured(b"x")).match is FileMatch.UNKNOWN
    assert empty.nearest(b"/usr/bin/x") == ()
    assert empty.accepted(b"\x28\0\0\0sha256:\0", 32, "little") == {}


@pytest.mark.parametrize(
    ("head", "order"),
    [
        (b"\x28\0\0\0sha256:\0", "little"),
        (b"\0\0\0\x28sha256:\0", "big"),
        (b"\x2c\0\0\0ima:sha256:\0", "little"),
    ],
)
def test_the_bytes_of_known_entries(head: bytes, order: str) -> None:
    references = compiled()
    accepted = references.accepted(head, 32, order)  # type: ignore[arg-type]
    name = b"/usr/bin/mkdir\0"
    size = len(name).to_bytes(4, order)  # type: ignore[arg-type]
    assert accepted[head + hashlib.sha256(b"mkdir").digest() + size + name] == "package"
    assert accepted[head + hashlib.sha256(b"klibc mkdir").digest() + size + name] == "built"
    assert len(accepted) == 7
    assert references.accepted(head, 32, order) is accepted  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("head", "size"),
    [
        (b"\x1c\0\0\0sha256:\0", 20),
        (b"\x2f\0\0\0verity:sha256:\0", 32),
        (b"\x28\0\0\0blake3:\0", 32),
        (b"", 0),
    ],
)
def test_forms_that_no_reference_fits(head: bytes, size: int) -> None:
    assert compiled().accepted(head, size, "little") == {}


def test_names_are_as_ima_writes_them() -> None:
    references = compiled()
    found = references.compare(b"/usr/share/doc/read_me", measured(b"read me"))
    assert found.match is FileMatch.KNOWN
    assert references.compare(b"/usr/lib/bad\xff", measured(b"bad")).match is FileMatch.KNOWN


def test_two_paths_that_are_one_to_ima() -> None:
    references = compile_files({"/a b": (value(b"1"),), "/a_b": (value(b"2"),)})
    assert len(references) == 1
    for content in (b"1", b"2"):
        assert references.compare(b"/a_b", measured(content)).match is FileMatch.KNOWN


@pytest.mark.parametrize("order", [1, -1])
def test_the_best_provenance_counts(order: int) -> None:
    values = (value(b"x", SEEN), value(b"x", COREUTILS))[::order]
    found = compile_files({"/x": values}).compare(b"/x", measured(b"x"))
    assert [e.provenance for e in found.expected] == [COREUTILS]


@pytest.mark.parametrize("path", ["relative", "", "/nul\0"])
def test_paths_that_no_file_has_are_refused(path: str) -> None:
    with pytest.raises(ValueError, match="is not an absolute path"):
        compile_files({path: (value(b"x"),)})


def test_the_content_id_says_what_is_accepted() -> None:
    def id_of(path: str, one: ReferenceValue) -> bytes:
        return compile_files({path: (one,)}, "name").content_id

    base = id_of("/x", value(b"x"))
    assert len(base) == 32
    assert base == compile_files({"/x": (value(b"x"),)}, "other name").content_id
    others = [
        id_of("/y", value(b"x")),
        id_of("/x", value(b"y")),
        id_of("/x", value(b"x", SEEN)),
        id_of("/x", value(b"x", COREUTILS, SHA1)),
        compile_files({}).content_id,
    ]
    assert len({base, *others}) == 6
    references = compiled()
    assert references.content_id is references.content_id


def test_a_digest_value_is_not_confused_between_algorithms() -> None:
    same = Digest(HashAlgorithm.SHA3_256, hashlib.sha256(b"x").digest())
    references = compile_files({"/x": (ReferenceValue((same,), "odd", COREUTILS),)})
    assert references.compare(b"/y", measured(b"x")).match is FileMatch.UNKNOWN
    assert references.compare(b"/x", measured(b"x")).match is FileMatch.OTHER_ALGORITHM
