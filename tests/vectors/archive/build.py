"""Builds the signed Release files of this folder.  Needs gpg; the tests need gpgv only.

    python3 tests/vectors/archive/build.py

Every run makes new keys, so all of them change together.  Case names say what is wrong.
"""

from __future__ import annotations

import hashlib
import subprocess
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
SIGNED_AT = "20260102T030405"

PACKAGES = """\
Package: true
Version: 1.0-1
Architecture: amd64
Depends: libc6 (>= 2.36)
Filename: pool/main/t/true/true_1.0-1_amd64.deb
Size: 4
SHA256: b5bea41b6c623f7c09f1bf24dcae58ebab3c0cdd90ad966bc43a45b44867e12b

Package: true
Version: 1:0.9-1
Architecture: amd64
Filename: pool/main/t/true/true_0.9-1_amd64.deb
Size: 5
SHA256: 8a798890fe93817163b10b5f7bd2ca4d25d84c52739a645a889c173eee7d9d3d

Package: truest
Version: 1.0-1
Architecture: all
Filename: pool/main/t/truest/truest_1.0-1_all.deb
Size: 6
SHA256: 9af15b336e6a9619928537df30b2e6a2376569fcf9d7e773eccede65606529a0
"""

RELEASE = """\
Origin: Debian
Label: Debian
Suite: stable
Version: 12.1
Codename: bookworm
Date: Fri, 02 Jan 2026 03:04:05 UTC
Valid-Until: Fri, 09 Jan 2026 03:04:05 UTC
Architectures: amd64
Components: main
SHA256:
 {digest} {size:8d} main/binary-amd64/Packages
"""


class Key:
    """A signing key in a GnuPG home of its own."""

    def __init__(self, folder: Path, name: str, *options: str) -> None:
        self.home = folder / name
        self.home.mkdir(mode=0o700)
        self.gpg(
            "--passphrase", "", "--faked-system-time", "20260101T000000", *options,
            "--quick-generate-key", f"{name} (a test key of undercroft)", "ed25519", "sign",
            "1d" if name == "expired" else "never",
        )  # fmt: skip

    def gpg(self, *arguments: str) -> bytes:
        return subprocess.run(
            ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--yes", *arguments],
            check=True, capture_output=True,
        ).stdout  # fmt: skip

    def sign(self, text: bytes, how: str, at: str, *options: str) -> bytes:
        source, target = self.home / "text", self.home / "signed"
        source.write_bytes(text)
        self.gpg(
            "--faked-system-time", at, *options, "--output", str(target), how, str(source),
        )  # fmt: skip
        return target.read_bytes()

    def public(self) -> bytes:
        return self.gpg("--export")


def main() -> None:
    packages = PACKAGES.encode()
    digest = hashlib.sha256(packages).hexdigest()
    release = RELEASE.format(digest=digest, size=len(packages)).encode()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        good, other, expired = (Key(folder, n) for n in ("good", "other", "expired"))
        inline = good.sign(release, "--clearsign", SIGNED_AT)
        cases = {
            "keyring.gpg": good.public() + expired.public(),
            "Packages": packages,
            "Release": release,
            "good.InRelease": inline,
            "good.Release.gpg": good.sign(release, "--detach-sign", SIGNED_AT),
            "wrong-key.InRelease": other.sign(release, "--clearsign", SIGNED_AT),
            "expired-key.InRelease": expired.sign(release, "--clearsign", "20260101T120000"),
            "sha1.InRelease": good.sign(
                release, "--clearsign", SIGNED_AT, "--digest-algo", "SHA1"
            ),
            "tampered.InRelease": inline.replace(b"Version: 12.1", b"Version: 12.2"),
            "text-outside.InRelease": b"Origin: Mallory\n\n" + inline,
            "unsigned.InRelease": release,
            "truncated.InRelease": inline[: len(inline) // 2],
        }  # fmt: skip
    for case, data in cases.items():
        (HERE / case).write_bytes(data)


if __name__ == "__main__":
    main()
