from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from undercroft.base import EnvironmentFault
from undercroft.securekernel.vtpm import manifest

ROOT = Path(manifest.__file__).parents[2]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> str:
    file = tmp_path_factory.mktemp("manifest") / "manifest"
    command = [sys.executable, "-m", "undercroft.securekernel.vtpm.manifest", str(file)]
    subprocess.run(command, check=True)
    return file.read_text()


def test_a_manifest_is_sorted_lines_of_every_kind(built: str) -> None:
    first, *lines = built.splitlines()
    assert first == manifest.FORMAT
    assert lines == sorted(lines)
    kinds = {line.split()[0] for line in lines}
    assert kinds == {"distribution", "interpreter", "library", "package", "stdlib"}
    assert all(len(line.rpartition(":")[2]) == 64 for line in lines)
    assert {line.split()[1] for line in lines if line.startswith("distribution")} == set(
        manifest.DISTRIBUTIONS
    )
    assert any(line.startswith("library libc.so") for line in lines)


def test_anyone_can_compute_our_own_digest_again(built: str) -> None:
    packages = " ".join(f"./{package}" for package in manifest.PACKAGES)
    shell = (
        f"find ./__init__.py {packages} -name __pycache__ -prune -o -type f -print"
        " | LC_ALL=C sort | xargs sha256sum | sha256sum"
    )
    done = subprocess.run(shell, shell=True, cwd=ROOT, capture_output=True, text=True, check=True)
    assert f"package undercroft sha256:{done.stdout.split()[0]}" in built.splitlines()


def test_the_secure_kernel_imports_nothing_that_the_manifest_leaves_out() -> None:
    script = """
import importlib, importlib.metadata, pkgutil, sys, undercroft
before = {name.split(".")[0] for name in sys.modules}
root = importlib.import_module("undercroft.securekernel")
for module in pkgutil.walk_packages(root.__path__, root.__name__ + "."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
known = importlib.metadata.packages_distributions()
tops = {name.split(".")[0] for name in sys.modules} - before
print(*sorted(n for n in sys.modules if n.startswith("undercroft.")), file=sys.stderr)
print(*sorted({d.lower() for top in tops for d in known.get(top, ())}))
"""
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) - {"undercroft"} <= set(manifest.DISTRIBUTIONS)
    imported = {name.split(".")[1] for name in done.stderr.split()}
    assert imported <= set(manifest.PACKAGES)


def test_a_changed_added_or_removed_file_changes_the_tree(tmp_path: Path) -> None:
    def digest() -> str:
        skip = frozenset({"__pycache__"})
        return manifest.tree_digest(tmp_path, manifest.files_below(tmp_path, skip=skip))

    with pytest.raises(EnvironmentFault, match="nothing to measure"):
        digest()
    (tmp_path / "a").write_text("1")
    seen = {digest()}
    (tmp_path / "a").write_text("2")
    seen.add(digest())
    (tmp_path / "b").write_text("")
    seen.add(digest())
    (tmp_path / "b").rename(tmp_path / "c")
    seen.add(digest())
    assert len(seen) == 4
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("x")
    assert digest() in seen


def test_what_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot be measured"):
        manifest.file_digest(tmp_path / "none")


def test_only_executable_file_mappings_count() -> None:
    maps = (
        "00400000-00452000 r-xp 00000000 08:02 173521 /usr/bin/a b\n"
        "00651000-00652000 r--p 00051000 08:02 173521 /usr/bin/data\n"
        "7fff0000-7fff1000 r-xp 00000000 00:00 0 [vdso]\n"
        "7fff2000-7fff3000 r-xp 00000000 00:00 0 \n"
    )
    assert manifest.mapped_libraries(maps) == {Path("/usr/bin/a b")}


def test_without_a_file_it_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(manifest, "build", lambda: b"manifest\n")
    assert manifest.main([]) == 0
    assert capsys.readouterr().out == "manifest\n"


def test_a_distribution_that_is_absent_is_measured_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "DISTRIBUTIONS", ("no-such-distribution",))
    assert b"\ndistribution no-such-distribution absent\n" in manifest.build()


def test_libraries_behind_a_link_are_measured_where_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "real" / "linked-1.dist-info").mkdir(parents=True)
    (tmp_path / "real" / "linked.py").write_text("1\n")
    described = tmp_path / "real" / "linked-1.dist-info"
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: linked\nVersion: 1\n")
    (described / "RECORD").write_text("linked.py,,\nlinked-1.dist-info/METADATA,,\n")
    (tmp_path / "link").symlink_to("real")
    monkeypatch.syspath_prepend(str(tmp_path / "link"))
    found = manifest._distribution("linked")
    assert found is not None
    version, root, files = found
    assert (version, files) == ("1", [tmp_path / "real" / "linked.py"])
    assert len(manifest.tree_digest(root, files)) == 64
