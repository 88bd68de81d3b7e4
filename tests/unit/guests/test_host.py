"""What doctor looks for."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import pytest

from undercroft.guests import host
from undercroft.guests.host import Check, State, apt_line

FakePrograms = Callable[..., Path]


def _one(checks: Iterable[Check], name: str) -> Check:
    return next(c for c in checks if c.name == name)


def test_a_program_with_its_version(programs: FakePrograms) -> None:
    programs(swtpm="echo 'TPM emulator version 9.8.7, Copyright'")
    check = _one(host.programs(), "swtpm")
    assert (check.state, check.found, check.package) == (State.OK, "9.8.7", "swtpm")


def test_a_program_that_does_not_run(programs: FakePrograms) -> None:
    (programs() / "swtpm").write_text("#!/nonexistent\n")
    (programs() / "swtpm").chmod(0o755)
    assert _one(host.programs(), "swtpm").state is State.MISSING


def test_missing_programs_make_the_apt_line(
    programs: FakePrograms, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(programs()))
    monkeypatch.setattr(host, "_FILES", ((Path("/nonexistent/keys.gpg"), "keys", "trust"),))
    checks = tuple(host.programs())
    assert all(c.state is State.MISSING for c in checks)
    assert apt_line(checks) == (
        "apt-get install apt dosfstools gcc gpgv keys make mmdebstrap mtools qemu-system-x86 "
        "swtpm swtpm-tools util-linux"
    )
    assert not _one(checks, "gcc").needed


def test_nothing_missing_no_apt_line() -> None:
    assert apt_line((Check("x", State.OK, "1", "p", "pkg"),)) == ""
    assert apt_line((Check("x", State.MISSING, "", "a Python package"),)) == ""


def test_python_packages_are_those_that_we_require() -> None:
    names = {c.name for c in host.python_packages()}
    assert {"python", "msgspec", "cryptography", "typer"} <= names
    assert "pytest" not in names  # an extra
    assert all(c.state is State.OK for c in host.python_packages())


def test_a_missing_python_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.metadata.requires", lambda _name: ["no-such-package-x>=1"])
    assert _one(host.python_packages(), "no-such-package-x").state is State.MISSING


def test_kvm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "kvm_device_fault", lambda: "there is no /dev/kvm")
    assert host.kvm(tmp_path).found == "there is no /dev/kvm: TCG is used"
    monkeypatch.setattr(host, "kvm_device_fault", lambda: "")
    assert "tried out after" in host.kvm(tmp_path).found
    (tmp_path / "builds" / "micro").mkdir(parents=True)
    (tmp_path / "builds" / "micro" / "vmlinuz").touch()
    for works, state in ((True, State.OK), (False, State.LIMITED)):
        monkeypatch.setattr(host, "kvm_works", lambda *_a, w=works: (w, "tried"))
        assert host.kvm(tmp_path).state is state


@pytest.mark.parametrize(
    ("full", "user", "state", "found"),
    [
        (host._FEATURE_WP_SHMEM, None, State.OK, "write-protects"),
        (0, None, State.LIMITED, "no write protection"),
        (None, 0, State.LIMITED, "user mode only"),
        (None, None, State.LIMITED, "not available"),
    ],
)
def test_userfaultfd(
    monkeypatch: pytest.MonkeyPatch,
    full: int | None,
    user: int | None,
    state: State,
    found: str,
) -> None:
    monkeypatch.setattr(host, "_userfaultfd_features", lambda flags: user if flags else full)
    check = host.userfaultfd()
    assert check.state is state
    assert found in check.found


def test_what_is_tried_for_real_gives_an_answer() -> None:
    assert host.userfaultfd().found
    assert host.ptrace().state in (State.OK, State.LIMITED)


def test_resources(tmp_path: Path) -> None:
    checks = {c.name: c for c in host.resources(tmp_path / "not" / "yet")}
    assert checks["home"].state is State.OK
    assert int(checks["processors"].found) >= 1
    assert "MiB free" in checks["/dev/shm"].found
    too_long = {c.name: c for c in host.resources(tmp_path / ("x" * 100))}
    assert too_long["home"].state is State.MISSING
