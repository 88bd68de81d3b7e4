"""Fuzz targets for the TPM formats: one input, two properties.

Only FormatError escapes a parser, and what parses encodes to the input.  ``test_tpm.py`` runs
the targets over the committed corpus and near it.  By hand, with atheris (``pip install -e
'.[fuzz]'``):

    python tests/fuzz/tpm.py TARGET [libFuzzer options, such as -max_total_time=60]

New inputs go to build/fuzz/tpm/TARGET; one that found a fault belongs into the corpus once the
fault is mended.
"""

from __future__ import annotations

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

from undercroft.base import FormatError
from undercroft.formats import tpm
from undercroft.formats.tpm.certificate import encode_crl, parse_certificate, parse_crl
from undercroft.formats.tpm.fields import encode_2b

HERE = Path(__file__).parent
CORPUS = HERE / "corpus" / "tpm"


class _Encodes(Protocol):
    def encode(self) -> bytes: ...


T = TypeVar("T")


def _round_trip(
    parse: Callable[[bytes], T], encode: Callable[[T], bytes]
) -> Callable[[bytes], None]:
    def target(data: bytes) -> None:
        try:
            value = parse(data)
        except FormatError as error:
            if not 0 <= error.offset <= len(data):
                raise AssertionError(f"offset {error.offset} of {len(data)}") from error
            return
        if encode(value) != data:
            raise AssertionError("encode(parse(x)) is not x")

    return target


def _plain(parse: Callable[[bytes], _Encodes]) -> Callable[[bytes], None]:
    return _round_trip(parse, lambda value: value.encode())


def _sized(parse: Callable[[bytes], _Encodes]) -> Callable[[bytes], None]:
    return _round_trip(parse, lambda value: encode_2b(value.encode()))


_PARTS = (
    _plain(tpm.parse_credential),
    _plain(tpm.parse_digest_list),
    _plain(tpm.parse_ecc_point),
    _plain(tpm.parse_encrypted_secret),
    _plain(tpm.parse_id_object),
    _plain(tpm.parse_selection_list),
    _sized(tpm.parse_creation_data_2b),
    _sized(tpm.parse_nv_public_2b),
    _sized(tpm.parse_public_2b),
)


def _parts(data: bytes) -> None:
    """What stands inside other structures, and the same with a size in front."""
    for part in _PARTS:
        part(data)


def _certificate(data: bytes) -> None:
    """A certificate may be wrapped, so only the certificate itself comes back."""
    try:
        certificate = parse_certificate(data)
    except FormatError:
        return
    if parse_certificate(certificate.der).der != certificate.der:
        raise AssertionError("the certificate alone is not itself")


def _crl(data: bytes) -> None:
    try:
        crl = parse_crl(data)
    except FormatError:
        return
    if parse_crl(encode_crl(crl)) != crl:
        raise AssertionError("the CRL alone is not itself")


TARGETS: dict[str, Callable[[bytes], None]] = {
    "attest": _plain(tpm.parse_attest),
    "signature": _plain(tpm.parse_signature),
    "public": _plain(tpm.parse_public),
    "creation": _plain(tpm.parse_creation_data),
    "credential": _round_trip(tpm.parse_tools_credential, lambda value: value.encode_tools_file()),
    "parts": _parts,
    "pcr-read": _plain(tpm.parse_pcr_read),
    "nv-public": _plain(tpm.parse_nv_public),
    "tpm12-quote": _plain(tpm.parse_quote_info12),
    "tpm12-composite": _plain(tpm.parse_pcr_composite),
    "tpm12-pubkey": _plain(tpm.parse_pubkey12),
    "x509-certificate": _certificate,
    "x509-crl": _crl,
}


def main(arguments: list[str]) -> int:
    """Fuzz the target that is named first; the rest goes to libFuzzer."""
    if not arguments or arguments[0] not in TARGETS:
        sys.stderr.write("targets: " + " ".join(TARGETS) + "\n")
        return 2
    import atheris

    name, *options = arguments
    found = HERE.parents[1] / "build" / "fuzz" / "tpm" / name
    found.mkdir(parents=True, exist_ok=True)
    # Import everything again, instrumented: instrumenting all of Python would take a minute.
    for module in [module for module in sys.modules if module.startswith("undercroft")]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["undercroft"]):
        target = runpy.run_path(__file__)["TARGETS"][name]
    artifacts = f"-artifact_prefix={found}/fault-"
    atheris.Setup([sys.argv[0], artifacts, *options, str(found), str(CORPUS / name)], target)
    atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
