"""Record evidence of a real TPM: swtpm, driven with tpm2-tools.

    python tests/vectors/tpm/record.py [DIRECTORY]

writes one JSON file per case into DIRECTORY (``recorded`` beside this file unless given); byte
strings are in hexadecimal.  Keys and nonces are new every time, so the committed files are one
recording; ``tests/guest/test_tpm.py`` makes another and verifies it.
"""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TypeAlias

from undercroft.base import HashAlgorithm

Json: TypeAlias = dict[str, object]

EK_RSA, EK_ECC = "0x81010001", "0x81010016"
EK_CERTIFICATES = {"rsa": "0x1c00002", "ecc": "0x1c00016"}
NV_INDEX = "0x1500016"
AK_ATTRIBUTES = "fixedtpm|fixedparent|sensitivedataorigin|userwithauth|restricted|sign"
NONCE = bytes(range(32))
# name -> (tpm2_createak arguments, PCR selection)
QUOTES = {
    "ecdsa-p256-sha256": ("ecc -s ecdsa -g sha256", "sha256:0,1,2,3,4,5,6,7,8,9,10"),
    "ecdsa-p384-sha384": ("ecc384 -s ecdsa -g sha384", "sha384:0,7"),
    "rsassa-sha256": ("rsa -s rsassa -g sha256", "sha256:0,17,23"),
    "rsassa-sha1": ("rsa -s rsassa -g sha1", "sha1:0,1,2"),
    "rsassa-sha512": ("rsa -s rsassa -g sha512", "sha256:10"),
    "rsapss-sha256": ("rsa -s rsapss -g sha256", "sha1:10+sha256:0,10"),
}


def free_ports() -> tuple[int, int]:
    """Return two neighbouring TCP ports that are free now, as tpm2-tss wants them."""
    while True:
        with socket.socket() as first:
            first.bind(("127.0.0.1", 0))
            port = int(first.getsockname()[1])
            with contextlib.suppress(OSError), socket.socket() as second:
                second.bind(("127.0.0.1", port + 1))
                return port, port + 1


class Recorder:
    """A swtpm of its own in ``folder``, and the tools that talk to it."""

    def __init__(self, folder: Path, port: int, control: int) -> None:
        self.folder = folder
        self.port, self.control = port, control
        self.environment = {
            **os.environ,
            "TPM2TOOLS_TCTI": f"swtpm:host=127.0.0.1,port={port}",
        }

    def run(self, command: str) -> bytes:
        """Run one command in the folder; raises CalledProcessError with what it said."""
        done = subprocess.run(
            command.split(),
            cwd=self.folder,
            env=self.environment,
            capture_output=True,
            check=False,
            timeout=60,
        )
        if done.returncode:
            raise RuntimeError(f"{command}: {done.stderr.decode(errors='replace')}")
        return done.stdout

    def read(self, name: str) -> bytes:
        """Return the contents of a file in the folder."""
        return (self.folder / name).read_bytes()

    def flush(self) -> None:
        """Drop transient objects: a TPM has room for three."""
        self.run("tpm2_flushcontext -t")

    def reset(self) -> None:
        """Reset the TPM, as a reboot does, after an orderly shutdown."""
        self.run("tpm2_shutdown -c")
        self.run(f"swtpm_ioctl --tcp 127.0.0.1:{self.control} -i")
        self.run("tpm2_startup -c")

    def create_ak(self, arguments: str, ek: str = EK_RSA) -> None:
        """Create an attestation key under an endorsement key: ak.ctx, ak.pub, ak.name."""
        self.run(f"tpm2_createak -C {ek} -c ak.ctx -u ak.pub -n ak.name -G {arguments}")
        self.flush()

    def create_primary(self, hierarchy: str) -> None:
        """Create an attestation key as a primary key of ``hierarchy`` (e or o)."""
        self.run(
            f"tpm2_createprimary -C {hierarchy} -g sha256 -G ecc256:ecdsa-sha256:null "
            f"-a {AK_ATTRIBUTES} -c ak.ctx"
        )
        self.run("tpm2_readpublic -c ak.ctx -o ak.pub")
        self.flush()

    def pcr_values(self, selection: str) -> dict[str, dict[str, str]]:
        """Read the selected PCRs."""
        self.run(f"tpm2_pcrread {selection} -o pcrs.bin")
        values = self.read("pcrs.bin")
        banks: dict[str, dict[str, str]] = {}
        offset = 0
        for bank in selection.split("+"):
            name, indices = bank.split(":")
            algorithm = HashAlgorithm.from_name(name)
            assert algorithm is not None
            banks[name] = {}
            for index in indices.split(","):
                banks[name][index] = values[offset : offset + algorithm.size].hex()
                offset += algorithm.size
        assert offset == len(values)
        return banks

    def quote(self, selection: str, scheme: str, hash_name: str) -> Json:
        """Quote with ak.ctx."""
        self.run(
            f"tpm2_quote -c ak.ctx -l {selection} -q {NONCE.hex()} -m attest -s sig "
            f"--scheme {scheme} -g {hash_name}"
        )
        self.flush()
        return {**self.signed("attest", "sig"), "pcrs": self.pcr_values(selection)}

    def signed(self, attest: str, signature: str) -> Json:
        """Return a signed structure, the key that signed it and the nonce."""
        return {
            "attest": self.read(attest).hex(),
            "signature": self.read(signature).hex(),
            "ak_public": self.read("ak.pub").hex(),
            "qualifying_data": NONCE.hex(),
        }


@contextlib.contextmanager
def fresh_tpm(folder: Path) -> Iterator[Recorder]:
    """Manufacture a TPM with EK certificates in ``folder`` and run it until the block ends."""
    (folder / "state").mkdir()
    (folder / "ca").mkdir()
    (folder / "localca.conf").write_text(
        f"statedir = {folder}/ca\nsigningkey = {folder}/ca/signkey.pem\n"
        f"issuercert = {folder}/ca/issuercert.pem\ncertserial = {folder}/ca/certserial\n"
    )
    (folder / "options").write_text("")
    (folder / "setup.conf").write_text(
        "create_certs_tool = /usr/bin/swtpm_localca\n"
        f"create_certs_tool_config = {folder}/localca.conf\n"
        f"create_certs_tool_options = {folder}/options\n"
    )
    recorder = Recorder(folder, *free_ports())
    recorder.run(
        "swtpm_setup --tpm2 --tpmstate state --create-ek-cert --config setup.conf "
        "--pcr-banks sha1,sha256,sha384"
    )
    command = (
        f"swtpm socket --tpm2 --tpmstate dir={folder}/state --flags startup-clear "
        f"--server type=tcp,port={recorder.port},bindaddr=127.0.0.1 "
        f"--ctrl type=tcp,port={recorder.control},bindaddr=127.0.0.1"
    )
    with subprocess.Popen(command.split(), stderr=subprocess.DEVNULL) as process:
        try:
            _wait_for(recorder.port)
            yield recorder
        finally:
            process.terminate()


def _wait_for(port: int) -> None:
    for _ in range(100):
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
            # swtpm ends with the last connection's data channel only if told to: it is up.
            time.sleep(0.1)
            return
        time.sleep(0.05)
    raise RuntimeError("swtpm did not start")


def record_identity(tpm: Recorder) -> Json:
    """The endorsement keys, their certificates and the CA's."""
    tpm.run(f"tpm2_readpublic -c {EK_RSA} -o ek-rsa.pub")
    tpm.run(f"tpm2_readpublic -c {EK_ECC} -o ek-ecc.pub")
    case: Json = {
        "root": tpm.read("ca/swtpm-localca-rootca-cert.pem").decode(),
        "intermediate": tpm.read("ca/issuercert.pem").decode(),
    }
    for kind, index in EK_CERTIFICATES.items():
        tpm.run(f"tpm2_nvread {index} -C o -o ek.crt")
        case[f"ek_{kind}_public"] = tpm.read(f"ek-{kind}.pub").hex()
        case[f"ek_{kind}_certificate"] = tpm.read("ek.crt").hex()
    return case


def record_credential(tpm: Recorder) -> Json:
    """A credential that tpm2-tools made in software, for the RSA endorsement key."""
    (tpm.folder / "secret").write_bytes(NONCE)
    tpm.create_ak("ecc -s ecdsa -g sha256")
    tpm.run(
        f"tpm2_makecredential -T none -u ek-rsa.pub -s secret "
        f"-n {tpm.read('ak.name').hex()} -o credential"
    )
    return {
        "blob": tpm.read("credential").hex(),
        "ak_public": tpm.read("ak.pub").hex(),
        "secret": NONCE.hex(),
    }


def record_statements(tpm: Recorder) -> Iterator[tuple[str, Json]]:
    """Every other statement that a TPM makes, signed by one attestation key."""
    tpm.create_primary("e")
    tpm.run(
        "tpm2_createprimary -C o -G rsa2048 -c subject.ctx --creation-data creation "
        "-d creation.hash -t ticket -l sha256:0,7 -q 616263"
    )
    tpm.run("tpm2_readpublic -c subject.ctx -o subject.pub")
    tpm.flush()
    subject = {"subject_public": tpm.read("subject.pub").hex()}
    tpm.run("tpm2_certify -C ak.ctx -c subject.ctx -g sha256 -o attest -s sig")
    tpm.flush()
    # This tool takes no nonce; it always sends these four bytes.
    certify = {**tpm.signed("attest", "sig"), **subject, "qualifying_data": "00ff55aa"}
    yield "certify", certify
    tpm.run(
        "tpm2_certifycreation -C ak.ctx -c subject.ctx -d creation.hash -t ticket "
        f"-g sha256 -q {NONCE.hex()} --attestation attest -o sig"
    )
    tpm.flush()
    yield (
        "creation",
        {
            **tpm.signed("attest", "sig"),
            **subject,
            "creation_data": tpm.read("creation").hex(),
        },
    )
    for name, size in (("nv", 8), ("nv-digest", 0)):
        tpm.run(
            f"tpm2_nvcertify -C ak.ctx -g sha256 --size {size} --offset 0 -c o "
            f"-q {NONCE.hex()} --attestation attest -o sig {NV_INDEX}"
        )
        tpm.flush()
        yield name, tpm.signed("attest", "sig")
    tpm.run(f"tpm2_gettime -c ak.ctx -g sha256 -q {NONCE.hex()} --attestation attest -o sig")
    tpm.flush()
    yield "time", tpm.signed("attest", "sig")
    tpm.run(f"tpm2_getcommandauditdigest -c ak.ctx -g sha256 -q {NONCE.hex()} -m attest -s sig")
    tpm.flush()
    yield "command-audit", tpm.signed("attest", "sig")
    tpm.run("tpm2_startauthsession --audit-session -S session.ctx")
    tpm.run("tpm2_getrandom 8 -S session.ctx -o random")
    tpm.run(
        "tpm2_getsessionauditdigest -c ak.ctx -S session.ctx -g sha256 "
        f"-q {NONCE.hex()} -m attest -s sig"
    )
    tpm.run("tpm2_flushcontext session.ctx")
    tpm.flush()
    yield "session-audit", tpm.signed("attest", "sig")


def record_progress(tpm: Recorder, hierarchy: str) -> Json:
    """Two quotes of the same primary key, before and after a reset."""
    quotes = []
    for _ in range(2):
        tpm.create_primary(hierarchy)
        quotes.append(tpm.quote("sha256:0", "ecdsa", "sha256"))
        tpm.reset()
    return {"quotes": quotes}


def record(folder: Path) -> Iterator[tuple[str, Json]]:
    """Record every case with a fresh TPM in ``folder``."""
    with fresh_tpm(folder) as tpm:
        yield "identity", record_identity(tpm)
        yield "credential", record_credential(tpm)
        tpm.run("tpm2_pcrextend 4:sha1=" + "11" * 20 + ",sha256=" + "22" * 32)
        tpm.run("tpm2_pcrextend 10:sha1=" + "33" * 20 + ",sha256=" + "44" * 32)
        for name, (arguments, selection) in QUOTES.items():
            tpm.create_ak(arguments)
            _, _, scheme, _, hash_name = arguments.split()
            yield f"quote-{name}", tpm.quote(selection, scheme, hash_name)
        tpm.run(f"tpm2_nvdefine -C o -s 8 {NV_INDEX}")
        (tpm.folder / "nv").write_bytes(NONCE[:8])
        tpm.run(f"tpm2_nvwrite {NV_INDEX} -C o -i nv")
        yield from record_statements(tpm)
        yield "progress-endorsement", record_progress(tpm, "e")
        yield "progress-owner", record_progress(tpm, "o")


def main(arguments: list[str]) -> None:
    """Write the cases into the directory that is named, or into ``recorded``."""
    out = Path(arguments[0]) if arguments else Path(__file__).parent / "recorded"
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, case in record(Path(folder)):
            text = json.dumps(case, indent=1, sort_keys=True) + "\n"
            (out / f"{name}.json").write_text(text)


if __name__ == "__main__":
    main(sys.argv[1:])
