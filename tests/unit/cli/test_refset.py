"""``undercroft reference`` for whole sets: packages, learning, merging, and others' forms."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from typer.testing import CliRunner

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError, Grade
from undercroft.cli import packages
from undercroft.cli.main import app
from undercroft.cli.verify import load_saved_case
from undercroft.packages.filestore import FileStore
from undercroft.reference.archive import FileArchive, FileFlag, PackageRecord
from undercroft.reference.archive_build import PackageFiles
from undercroft.reference.model import PackageState, ReferenceSet
from undercroft.reference.serialise import encode_reference_set, parse_reference_set
from undercroft.service.casefile import Case, save_case, save_result
from undercroft.service.verifier import ResultSigner, appraise_case
from undercroft.testing.guest import NOW, SimulatedGuest, standard_boot


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(
        app, ["reference", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"}
    )
    assert result.exit_code == status, result.output
    return result.stdout


def written(folder: Path, references: ReferenceSet, name: str = "set.json") -> Path:
    path = folder / name
    path.write_bytes(encode_reference_set(references))
    return path


def read(path: Path) -> ReferenceSet:
    return parse_reference_set(path.read_bytes())


GUEST = SimulatedGuest(boot=standard_boot(secure_boot=False))


@pytest.fixture
def table(home: Path) -> FileArchive:
    """A table with the files of the guest, in two versions of one package."""
    old = PackageFiles(
        PackageRecord("busybox", "1", "amd64", "ab" * 32, origin="Debian bookworm", signer="CD"),
        ((b"/usr/bin/busybox", hashlib.sha256(b"old").digest(), FileFlag.NONE),),
    )
    new = PackageFiles(
        PackageRecord("busybox", "2", "amd64", "cd" * 32, origin="Debian bookworm", signer="CD"),
        tuple(
            (path.encode(), hashlib.sha256(content).digest(), FileFlag.NONE)
            for path, content in GUEST.files.items()
        ),
    )
    return FileStore(wiring.reference_home()).save_table([old, new])


def case_of(folder: Path, references: ReferenceSet, *tables: FileArchive) -> Path:
    challenge = GUEST.challenge()
    policy = wiring.shipped_policy("direct-boot")
    case = Case(
        GUEST.evidence(challenge), challenge, GUEST.trust, references, policy, tables=tables
    )
    save_case(folder, case)
    signer = ResultSigner(ec.generate_private_key(ec.SECP256R1()))
    save_result(folder, signer.sign(appraise_case(case, NOW)), signer.public)
    return folder


def with_table(table: FileArchive) -> ReferenceSet:
    return replace(
        GUEST.predicted(), files={}, archives=(table.id.hex(),),
        states=(PackageState("busybox", "1", 1_700_000_000, "2", ("DSA-1",)),),
    )  # fmt: skip


def test_a_case_carries_its_tables(tmp_path: Path, home: Path, table: FileArchive) -> None:
    folder = case_of(tmp_path / "case", with_table(table), table)
    (home / "references" / "tables" / f"{table.id.hex()}.files").unlink()
    result = CliRunner().invoke(app, ["verify", str(folder), "--json"])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["verdict"] == "affirming"
    carried = folder / "tables" / f"{table.id.hex()}.files"
    carried.rename(home / "references" / "tables" / carried.name)
    assert load_saved_case(folder).tables[0].id == table.id
    (home / "references" / "tables" / carried.name).unlink()
    with pytest.raises(EnvironmentFault, match="is not here"):
        load_saved_case(folder)


def test_a_set_is_asked(tmp_path: Path, table: FileArchive) -> None:
    path = written(tmp_path, with_table(table))
    text = run("packages", "query", path, "/bin/busybox")
    assert "superseded since 2023-11-14 by 2; lacks DSA-1" in text
    assert "package: busybox 2 (current)" in text
    by_digest = json.loads(
        run("packages", "query", path, hashlib.sha256(b"old").hexdigest(), "--json")
    )
    assert [(row["version"], row["successor"]) for row in by_digest] == [("1", "2")]
    assert len(json.loads(run("packages", "query", path, "busybox", "--json"))) == 3
    assert run("packages", "query", path, "/nowhere", status=4) == ""
    with pytest.raises(EnvironmentFault, match="no packages in it"):
        run("packages", "query", written(tmp_path, GUEST.references, "other"), "/x")


def test_bad_requests_for_packages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: Path
) -> None:
    out = tmp_path / "set.json"
    with pytest.raises(EnvironmentFault, match="no packages are named"):
        run("packages", "build", "-o", out)
    with pytest.raises(EnvironmentFault, match="not a hash that we compute"):
        run("packages", "build", "x", "-o", out, "--algorithm", "md4")
    installed = tmp_path / "status"
    installed.write_bytes(b"\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        run("packages", "build", "-o", out, "--installed", installed)
    assert not out.exists()
    assert not (home / "references").exists()
    assert packages.SHOWN > 0


def test_learning_from_a_machine(tmp_path: Path) -> None:
    known = replace(GUEST.predicted(), files={})
    out = tmp_path / "learned.json"
    text = run("learn", case_of(tmp_path / "case", known), "-o", out)
    assert f"learned {len(GUEST.files)} files" in text
    assert Grade.OBSERVED in read(out).grades()
    assert read(out).pcrs == known.pcrs
    (first, *_) = GUEST.files
    wrong = SimulatedGuest(files={first: b"other"}).references.files
    folder = case_of(tmp_path / "contradicting", replace(known, files=wrong))
    document = json.loads(run("learn", folder, "-o", out, "--json", status=3))
    assert document["contradicting"] == [first]
    assert "not learned" in run("learn", folder, "-o", out, status=3)


def test_sets_are_merged(tmp_path: Path, table: FileArchive) -> None:
    boot = written(tmp_path, replace(GUEST.predicted(), files={}), "boot.json")
    files = written(tmp_path, ReferenceSet("files", archives=(table.id.hex(),)), "files.json")
    out = tmp_path / "whole.json"
    run("merge", boot, files, "-o", out)
    whole = read(out)
    assert whole.name == "references of demo + files"
    assert (whole.archives, bool(whole.pcrs)) == ((table.id.hex(),), True)
    run("merge", boot, "-o", out, "--name", "mine")
    assert read(out).name == "mine"
    with pytest.raises(EnvironmentFault, match="cannot write"):
        run("merge", boot, "-o", tmp_path / "no" / "x")


def test_forms_of_others(tmp_path: Path, table: FileArchive) -> None:
    plain = written(tmp_path, GUEST.references, "plain.json")
    out, back = tmp_path / "out", tmp_path / "back.json"
    run("export", plain, "-o", out)
    run("import", out, "-o", back)
    assert read(back).files == read(plain).files
    run("export", plain, "-o", tmp_path / "lock", "--to", "pcrlock")
    assert list((tmp_path / "lock").rglob("*.pcrlock"))
    both = written(tmp_path, with_table(table), "table.json")
    run("export", both, "-o", out, "--to", "keylime")
    document = json.loads(out.read_bytes())
    assert len(document["digests"]["/usr/bin/busybox"]) == 2
    document["excludes"], document["verification-keys"] = ["^/tmp"], "PEM"
    out.write_text(json.dumps(document))
    text = run("import", out, "-o", back, "--from", "keylime", "--note", "from Keylime")
    assert "files.exclude: ^/tmp" in text
    assert "left out: verification-keys" in text
    assert {v.provenance.note for vs in read(back).files.values() for v in vs} == {"from Keylime"}
    for arguments in (
        ("export", both, "-o", out),
        ("export", plain, "-o", out, "--to", "other"),
        ("import", out, "-o", back, "--from", "other"),
    ):
        with pytest.raises(EnvironmentFault):
            run(*arguments)
