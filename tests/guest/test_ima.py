"""A real kernel's IMA lists, recorded anew: they lead to what its TPM holds."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from undercroft.base import HashAlgorithm, PcrBank
from undercroft.formats.ima import encode_binary, parse_list
from undercroft.guests.manifest import GuestBuild
from undercroft.verify.ima import replay_ima
from undercroft.verify.ima_boot import verify_boot_aggregate

pytestmark = pytest.mark.guest

RECORD = Path(__file__).parents[1] / "vectors" / "ima" / "record.py"


def _recorder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("record_ima_lists", RECORD)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", ["ima", "ima-sig", "evm-sig"])
def test_a_recording_leads_to_what_the_tpm_holds(
    name: str, micro_build: GuestBuild, tmp_path: Path
) -> None:
    _recorder().record(micro_build.kernel.path, tmp_path, name)
    said = json.loads((tmp_path / f"{name}.json").read_text())
    data = (tmp_path / f"{name}.binary").read_bytes()
    measurements = parse_list(data)
    assert measurements == parse_list((tmp_path / f"{name}.ascii").read_bytes())
    assert encode_binary(measurements) == data
    assert len(measurements.violations()) == said["violations"] == 2
    quoted = []
    for label, values in said["pcrs"].items():
        algorithm = HashAlgorithm.from_name(label)
        assert algorithm is not None
        quoted.append(PcrBank(algorithm, {int(i): bytes.fromhex(v) for i, v in values.items()}))
        assert replay_ima(measurements, quoted[-1], reset_count=1).pending == 0
    aggregate = measurements[0].digest
    assert aggregate is not None
    verify_boot_aggregate(aggregate, quoted)
