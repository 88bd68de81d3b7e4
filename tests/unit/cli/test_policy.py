"""``undercroft policy``: read, explained, tried out on saved evidence, signed and believed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from typer.testing import CliRunner

from undercroft import wiring
from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.cli.main import app
from undercroft.service.casefile import Case, save_case, save_result
from undercroft.service.policies import PolicyFolder, policies_beside
from undercroft.service.verifier import ResultSigner, appraise_case
from undercroft.testing.guest import NOW, SimulatedGuest, standard_boot

WEB = """format = "undercroft.policy/1"
extends = "direct-boot"
id = "web"
serial = {serial}
[[rules]]
id = "small-kernel"
expect = "findings['kernel.text'].details.bytes < {limit}"
why = "the kernel is too large"
suggest = "make it smaller"
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UNDERCROFT_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def run(*arguments: str | Path, status: int = 0) -> str:
    result = CliRunner().invoke(
        app, ["policy", *map(str, arguments)], catch_exceptions=False, env={"COLUMNS": "200"}
    )
    assert result.exit_code == status, result.output
    return result.stdout


@pytest.fixture
def web(tmp_path: Path) -> Path:
    path = tmp_path / "web.toml"
    path.write_text(WEB.format(serial=3, limit=1))
    return path


@pytest.fixture
def case(tmp_path: Path) -> Path:
    guest = SimulatedGuest(boot=standard_boot(secure_boot=False))
    challenge = guest.challenge()
    made = Case(
        guest.evidence(challenge), challenge, guest.trust, guest.predicted(),
        wiring.shipped_policy("direct-boot"),
    )  # fmt: skip
    folder = tmp_path / "case"
    save_case(folder, made)
    signer = ResultSigner(ec.generate_private_key(ec.SECP256R1()))
    save_result(folder, signer.sign(appraise_case(made, NOW)), signer.public)
    return folder


def keys(folder: Path, name: str) -> tuple[Path, Path]:
    key = Ed25519PrivateKey.generate()
    private, public = folder / f"{name}.key", folder / f"{name}.pem"
    private.write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    public.write_bytes(
        key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
    )
    return private, public


def test_a_policy_is_checked(web: Path, tmp_path: Path) -> None:
    assert "leaves open" in run("check", "default")
    document = json.loads(run("check", web, "--json"))
    assert (document["id"], document["serial"], document["demands"]) == ("web", 3, True)
    assert "Secure Boot may be off" in document["leaves-open"]
    nothing = tmp_path / "nothing.toml"
    nothing.write_text(
        'format = "undercroft.policy/1"\nid = "nothing"\nquote = { banks = [] }\n'
        'boot = { pcrs = [], secure-boot = "not-required" }\nfiles = { ima = "not-required" }\n'
        "secure-kernel = { facts = [] }\nreference = { affirm = [] }\n"
        "result = { validity-s = 2, max-age-s = 1 }\n"
    )
    assert "demands nothing" in run("check", nothing, status=4)


def test_a_policy_is_explained(web: Path) -> None:
    assert "rules.small-kernel" in run("explain", web)
    rules = json.loads(run("explain", web, "--json"))["rules"]
    assert {"rule", "says"} == rules[0].keys()


def test_a_policy_is_tried_out_on_saved_evidence(web: Path, case: Path) -> None:
    text = run("test", web, case, status=3)
    assert "affirming -> contraindicated" in text
    assert "policy.rules.small-kernel: absent -> contraindicated: the kernel is too large" in text
    assert "rule rules.small-kernel; make it smaller" in text
    (result,) = json.loads(run("test", web, case, "--json", status=3))
    (change,) = result["changes"]
    assert (result["before"], result["after"]) == ("affirming", "contraindicated")
    assert (change["rule"], change["suggestion"]) == ("rules.small-kernel", "make it smaller")
    assert change["evidence"] == "findings['kernel.text'].details.bytes < 1"
    web.write_text(WEB.format(serial=3, limit=10**9))
    assert "affirming, as before" in run("test", web, case)
    assert "as before" in run("test", "direct-boot", case)


def test_only_believed_keys_and_no_older_issue(web: Path, tmp_path: Path, case: Path) -> None:
    private, public = keys(tmp_path, "mine")
    other, _ = keys(tmp_path, "other")
    signed, forged, old = (tmp_path / name for name in ("s.dsse", "f.dsse", "o.dsse"))
    run("sign", web, "--key", private, "-o", signed)
    run("sign", web, "--key", other, "-o", forged)
    web.write_text(WEB.format(serial=2, limit=1))
    run("sign", web, "--key", private, "-o", old)
    with pytest.raises(EnvironmentFault, match="no key is believed"):
        run("check", signed)
    assert len(run("trust", public).strip()) == 64
    assert json.loads(run("check", old, "--json"))["serial"] == 2
    assert json.loads(run("check", signed, "--json"))["serial"] == 3
    for path, check in ((old, "policy.rollback"), (forged, "policy.signature")):
        with pytest.raises(VerificationError) as caught:
            run("check", path)
        assert caught.value.check == check
    run("test", signed, case, status=3)


def test_what_cannot_be_signed(web: Path, tmp_path: Path) -> None:
    private, _ = keys(tmp_path, "mine")
    web.write_text(WEB.format(serial=0, limit=1))
    with pytest.raises(EnvironmentFault, match="needs a serial"):
        run("sign", web, "--key", private, "-o", tmp_path / "x")
    web.write_text(WEB.format(serial=1, limit=1))
    signed = tmp_path / "signed.dsse"
    run("sign", web, "--key", private, "-o", signed)
    with pytest.raises(EnvironmentFault, match="signed already"):
        run("sign", signed, "--key", private, "-o", tmp_path / "x")
    with pytest.raises(EnvironmentFault, match="cannot write"):
        run("sign", web, "--key", private, "-o", tmp_path / "no" / "x")


def test_whom_to_believe(tmp_path: Path, home: Path) -> None:
    _, one = keys(tmp_path, "one")
    _, two = keys(tmp_path, "two")
    assert len(run("trust", one, two, "--threshold", "2").split()) == 2
    with pytest.raises(FormatError, match="more signatures than keys"):
        run("trust", one, one, "--threshold", "2")
    with pytest.raises(FormatError):
        run("trust", tmp_path / "one.key")
    path = home / "policies" / "trust.json"
    path.write_text(path.read_text().replace("policy-trust/1", "policy-trust/2"))
    with pytest.raises(FormatError, match="another format"):
        PolicyFolder(home / "policies").trust()


def test_what_a_policy_may_extend(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text("x")
    assert policies_beside(tmp_path)("base") == "x"
    assert policies_beside(None)("base") is None
    assert policies_beside(tmp_path)("../base") is None
    assert "undercroft.policy" in (policies_beside(None)("default") or "")
    bad = tmp_path / "bad.toml"
    bad.write_bytes(b"\xff")
    with pytest.raises(FormatError, match="UTF-8"):
        run("check", bad)
    with pytest.raises(EnvironmentFault, match="cannot read"):
        run("check", tmp_path / "absent.toml")
