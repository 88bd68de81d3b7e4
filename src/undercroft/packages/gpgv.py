"""Who signed a file: runs ``gpgv`` against a keyring and reads its status lines.

Status lines are gnupg's stable machine interface (gnupg ``doc/DETAILS``, "Format of the
--status-fd output").  The exit status alone is not used: it says neither who signed nor what.
"""

from __future__ import annotations

import hashlib
import re
import subprocess
import tempfile
from pathlib import Path

from undercroft.base import EnvironmentFault, FormatError, VerificationError
from undercroft.packages.release import MAX_SIZE, SignedText

TIMEOUT_S = 60.0
_PREFIX = "[GNUPG:] "
_STATUS = "gpgv status"
_FINGERPRINT = re.compile(r"[0-9A-F]{40}|[0-9A-F]{64}")

# RFC 4880, section 9.4: MD5, SHA-1 and RIPE-MD/160 do not carry a signature any more.
_WEAK_HASHES = frozenset({1, 2, 3})
# Any of these in a signature's group makes that signature worthless, whatever else it says.
_REFUSALS = frozenset(
    {"BADSIG", "ERRSIG", "EXPSIG", "EXPKEYSIG", "REVKEYSIG", "NO_PUBKEY", "KEYREVOKED"}
)


def parse_status(text: str) -> tuple[str, ...]:
    """Return the fingerprints of the keys whose signatures are good, primary keys, in order.

    Each signature has a group of lines that starts with NEWSIG.  It counts if the group says
    GOODSIG and VALIDSIG, with a strong hash and no refusal (an expired or revoked key gives
    VALIDSIG as well).  A signature by a key that is not in the keyring is passed over, as an
    archive signs with next year's key too; one that is wrong (BADSIG) is never passed over.
    """
    signers: list[str] = []
    group: dict[str, list[str]] = {}
    lines = [line.removeprefix(_PREFIX).split() for line in text.splitlines()]
    for words in [*filter(None, lines), ["NEWSIG"]]:
        if words[0] == "BADSIG":
            raise VerificationError("archive.signature", "a signature does not fit", got=words[1])
        if words[0] != "NEWSIG":
            group[words[0]] = words[1:]
            continue
        if "GOODSIG" in group and "VALIDSIG" in group and not group.keys() & _REFUSALS:
            signers += _signer(group["VALIDSIG"])
        group = {}
    return tuple(signers)


def _signer(words: list[str]) -> list[str]:
    # VALIDSIG: fingerprint, date, timestamp, expiry, version, reserved, public-key algorithm,
    # hash algorithm, class, primary fingerprint.
    if len(words) != 10 or not words[7].isdecimal() or not _FINGERPRINT.fullmatch(words[9]):
        raise FormatError(_STATUS, 0, "VALIDSIG has another shape", got=" ".join(words)[:200])
    return [] if int(words[7]) in _WEAK_HASHES else [words[9]]


def _run(arguments: list[str]) -> tuple[str, str]:
    try:
        done = subprocess.run(
            ["gpgv", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except FileNotFoundError as error:
        raise EnvironmentFault(
            "gpgv is not installed", remedy="apt-get install gpgv debian-archive-keyring"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise EnvironmentFault("gpgv did not end", expected=f"within {TIMEOUT_S:.0f} s") from error
    return done.stdout, done.stderr


def read_signed(path: Path, keyring: Path, *, detached: Path | None = None) -> SignedText:
    """Return the content of ``path`` that keys of ``keyring`` signed.

    ``path`` is a clear-signed file (InRelease), or a plain one with its ``detached`` signature
    (Release, Release.gpg).  What is returned is what gpgv wrote out as signed, so that text
    outside of the signature is never read.  Raises VerificationError ``archive.signature``, or
    EnvironmentFault without gpgv or the keyring.
    """
    if not keyring.is_file():
        raise EnvironmentFault(
            f"the keyring {keyring} is missing", remedy="apt-get install debian-archive-keyring"
        )
    if (size := path.stat().st_size) > MAX_SIZE:
        raise FormatError("Release", 0, "too large", expected=f"at most {MAX_SIZE}", got=size)
    options = ["--status-fd", "1", "--keyring", str(keyring.resolve())]
    with tempfile.TemporaryDirectory(prefix="undercroft-") as folder:
        # gpgv gets a private copy: what was verified is what is hashed and parsed.
        data = path.read_bytes()
        copy, output = Path(folder, "signed"), Path(folder, "content")
        copy.write_bytes(data)
        if detached is None:
            status, errors = _run([*options, "--output", str(output), str(copy)])
        else:
            status, errors = _run([*options, str(detached), str(copy)])
            output = copy
        signers = parse_status(status)
        if not signers:
            raise VerificationError(
                "archive.signature",
                f"no accepted key signed {path.name}",
                expected=f"a key of {keyring}",
                got=(errors.strip().splitlines() or ["no signature"])[-1],
                remedy="apt-get install debian-archive-keyring brings the archive's newest keys",
            )
        return SignedText(output.read_bytes(), hashlib.sha256(data).hexdigest(), signers)
