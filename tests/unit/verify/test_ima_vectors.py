"""The vectors: lists that a simulated kernel made, lists that real kernels made, evmctl's keys."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from undercroft.base import FormatError, HashAlgorithm, PcrBank, VerificationError
from undercroft.formats.ima import (
    FileDigest,
    LinuxHash,
    encode_ascii,
    encode_binary,
    parse_ascii,
    parse_binary,
    parse_list,
    parse_signature,
)
from undercroft.verify.ima import replay_ima
from undercroft.verify.ima_boot import verify_boot_aggregate
from undercroft.verify.ima_signature import load_keyring, verify_ima_signature
from undercroft.verify.ima_walk import check_template_hashes

VECTORS = Path(__file__).parents[2] / "vectors" / "ima"
MADE, RECORDED, EVMCTL = VECTORS / "made", VECTORS / "recorded", VECTORS / "evmctl"
EXPECTED: dict[str, Any] = json.loads((MADE / "expected.json").read_text())
RECORDINGS = sorted(path.stem for path in RECORDED.glob("*.binary"))


def _build() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_ima_vectors", VECTORS / "build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def banks(pcrs: dict[str, dict[str, str]]) -> list[PcrBank]:
    found = []
    for name, values in pcrs.items():
        algorithm = HashAlgorithm.from_name(name)
        assert algorithm is not None
        found.append(PcrBank(algorithm, {int(i): bytes.fromhex(v) for i, v in values.items()}))
    return found


def named(kind: str) -> list[str]:
    names = [name for name, said in EXPECTED.items() if kind in said]
    assert names, f"there is no vector with {kind}"
    return names


def test_the_script_builds_what_is_committed() -> None:
    built = _build().build()
    assert {path.name for path in MADE.iterdir()} == built.keys()
    for name, content in built.items():
        assert (MADE / name).read_bytes() == content, name


@pytest.mark.parametrize("name", named("entries"))
def test_made_lists_lead_to_their_pcrs(name: str) -> None:
    said = EXPECTED[name]
    data = (MADE / f"{name}.bin").read_bytes()
    measurements = parse_binary(data, order=said["order"])
    assert encode_binary(measurements) == data
    assert check_template_hashes(measurements) == ()
    for bank in banks(said["pcrs"]):
        assert replay_ima(measurements, bank, reset_count=1).vouched == said["entries"]


@pytest.mark.parametrize("name", named("check"))
def test_defective_lists_are_refused_by_the_check_they_name(name: str) -> None:
    measurements = parse_binary((MADE / f"{name}.bin").read_bytes())
    sha256 = next(b for b in banks(EXPECTED[name]["pcrs"]) if b.algorithm is HashAlgorithm.SHA256)
    with pytest.raises(VerificationError) as refusal:
        replay_ima(measurements, sha256, reset_count=1)
    assert refusal.value.check == EXPECTED[name]["check"]


@pytest.mark.parametrize("name", named("error"))
def test_malformed_lists_are_refused(name: str) -> None:
    with pytest.raises(FormatError, match=EXPECTED[name]["error"]):
        parse_binary((MADE / f"{name}.bin").read_bytes())


def test_there_are_recordings_of_every_template() -> None:
    assert len(RECORDINGS) >= 11


@pytest.mark.parametrize("name", RECORDINGS)
def test_recorded_lists_lead_to_what_the_tpm_held(name: str) -> None:
    said = json.loads((RECORDED / f"{name}.json").read_text())
    binary = (RECORDED / f"{name}.binary").read_bytes()
    text = (RECORDED / f"{name}.ascii").read_bytes()
    measurements = parse_list(binary)
    assert parse_list(text) == measurements == parse_binary(binary) == parse_ascii(text)
    assert encode_binary(measurements) == binary
    assert encode_ascii(measurements) == text
    assert check_template_hashes(measurements) == ()
    assert len(measurements.violations()) == said["violations"] == 2
    quoted = banks(said["pcrs"])
    assert [bank.algorithm.label for bank in quoted] == ["sha1", "sha256", "sha384", "sha512"]
    for bank in quoted:
        replayed = replay_ima(measurements, bank, reset_count=1)
        assert replayed.vouched == len(measurements)
        # This kernel has SHA-384 and SHA-512 as modules, which IMA starts without.
        late = bank.algorithm.label in ("sha384", "sha512")
        assert replayed.quirks == (("ima.padded-sha1",) if late else ())
    aggregate = measurements[0].digest
    assert aggregate is not None
    assert verify_boot_aggregate(aggregate, quoted).quirks == ()


@pytest.mark.parametrize("key", ["rsa", "ec"])
@pytest.mark.parametrize("hash_name", ["sha256", "sha512"])
@pytest.mark.parametrize("source", ["crt.der", "pub.pem"])
def test_signatures_that_evmctl_made(key: str, hash_name: str, source: str) -> None:
    keyring = load_keyring([(key, (EVMCTL / f"{key}.{source}").read_bytes())])
    signature = parse_signature((EVMCTL / f"{key}.{hash_name}.sig").read_bytes())
    algorithm = LinuxHash.from_name(hash_name.encode())
    content = (EVMCTL / f"{key}.file").read_bytes()
    digest = FileDigest("ima", hash_name, algorithm, hashlib.new(hash_name, content).digest())
    assert verify_ima_signature(signature, digest, keyring).key.label == key
    other = FileDigest("ima", hash_name, algorithm, hashlib.new(hash_name, b"").digest())
    with pytest.raises(VerificationError) as refusal:
        verify_ima_signature(signature, other, keyring)
    assert refusal.value.check == "ima.signature"
