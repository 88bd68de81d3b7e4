"""A TPM somewhere else is enrolled by its maker's root and the secret that it gives back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from typer.testing import CliRunner

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.cli import enroll
from undercroft.formats.evidence import HowTrusted, parse_trust
from undercroft.formats.tpm import parse_tools_credential
from undercroft.service import foreign
from undercroft.testing import SimulatedAttester
from undercroft.testing.endorsement import SimulatedEk
from undercroft.testing.tpm_vendor import SimulatedTpmVendor

TPM, EK, VENDOR = SimulatedAttester(), SimulatedEk(), SimulatedTpmVendor()
CERTIFICATE = VENDOR.ek_certificate(EK.private.public_key())


def sized(data: bytes) -> bytes:
    return len(data).to_bytes(2, "big") + data


@pytest.fixture
def files(tmp_path: Path) -> Path:
    (tmp_path / "roots").mkdir()
    for number, authority in enumerate((VENDOR.root, VENDOR.intermediate)):
        der = authority.certificate.certificate.public_bytes(Encoding.PEM)
        (tmp_path / "roots" / f"{number}.pem").write_bytes(der)
    (tmp_path / "ak.pub").write_bytes(sized(TPM.public.encode()))
    (tmp_path / "ek.pub").write_bytes(EK.public.encode())
    (tmp_path / "ek.crt").write_bytes(CERTIFICATE.der)
    return tmp_path


def begin(files: Path) -> str:
    arguments = ["begin", str(files / "kept"), "--name", "far", "--roots", str(files / "roots")]
    for option, name in (("--ak", "ak.pub"), ("--ek", "ek.pub"), ("--ek-certificate", "ek.crt")):
        arguments += [option, str(files / name)]
    return run(*arguments)


def run(*arguments: str) -> str:
    result = CliRunner().invoke(enroll.app, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def answer(files: Path, secret: bytes | None = None) -> Path:
    """Open the credential as the TPM does; the file that comes back."""
    blob = parse_tools_credential((files / "kept" / foreign.CREDENTIAL).read_bytes())
    opened = EK.activate_credential(blob, TPM.public.name)
    (files / "answer").write_bytes(opened if secret is None else secret)
    return files / "answer"


def test_a_far_tpm_is_enrolled(files: Path) -> None:
    assert "credential.blob" in begin(files)
    assert (files / "kept" / foreign.PENDING).stat().st_mode & 0o777 == 0o600
    out = run("finish", str(files / "kept"), str(answer(files)))
    trust = parse_trust(Path(out.strip()).read_bytes())
    assert (trust.guest, trust.how) == ("far", HowTrusted.ACTIVATED)
    assert trust.ak_public == TPM.public.encode()
    assert trust.ek_certificate == CERTIFICATE.der
    assert not (files / "kept" / foreign.PENDING).exists()


def test_a_wrong_answer_enrols_nobody(files: Path) -> None:
    begin(files)
    with pytest.raises(VerificationError) as refusal:
        run("finish", str(files / "kept"), str(answer(files, bytes(32))))
    assert refusal.value.check == "activation.secret"
    assert not (files / "kept" / foreign.TRUST).exists()


def test_another_makers_tpm_gets_no_credential(files: Path) -> None:
    for path in (files / "roots").iterdir():
        path.unlink()
    stranger = SimulatedTpmVendor("stranger").root.certificate
    (files / "roots" / "root.der").write_bytes(stranger.der)
    with pytest.raises(VerificationError):
        begin(files)
    assert not (files / "kept").exists()


def test_a_key_that_signs_anything_is_refused(files: Path) -> None:
    (files / "ak.pub").write_bytes(sized(EK.public.encode()))
    with pytest.raises(VerificationError):
        begin(files)


def test_one_enrolment_at_a_time(files: Path) -> None:
    begin(files)
    with pytest.raises(EnvironmentFault, match="waits for its answer"):
        begin(files)


def test_an_answer_without_a_question(files: Path) -> None:
    with pytest.raises(EnvironmentFault, match="cannot read"):
        run("finish", str(files), str(files / "ek.crt"))


@pytest.mark.parametrize(("field", "value"), [("format", "x"), ("secret", "zz"), ("name", "")])
def test_a_folder_that_was_changed(files: Path, field: str, value: str) -> None:
    begin(files)
    path = files / "kept" / foreign.PENDING
    path.write_text(json.dumps({**json.loads(path.read_text()), field: value}))
    with pytest.raises(FormatError):
        run("finish", str(files / "kept"), str(answer(files)))


def test_files_that_are_too_large_and_folders_that_cannot_be_made(files: Path) -> None:
    (files / "ek.crt").write_bytes(bytes(foreign.MAX_FILE + 1))
    with pytest.raises(FormatError, match="larger"):
        begin(files)
    (files / "ek.crt").write_bytes(CERTIFICATE.der)
    (files / "kept").write_bytes(b"a file")
    with pytest.raises(EnvironmentFault):
        begin(files)
