"""Reading PCRs in as many commands as it takes, and knowing without reading that none changed."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from undercroft.base import EnvironmentFault, FormatError, HashAlgorithm, PcrBank
from undercroft.securekernel.vtpm import commands
from undercroft.securekernel.vtpm.commands import PcrSelection


class PcrReads:
    """The commands that read a selection, and the banks that their responses make."""

    def __init__(self, selection: PcrSelection) -> None:
        self._parts = commands.chunks(selection)
        if not self._parts:
            raise ValueError("an empty PCR selection")
        self.commands = [commands.pcr_read({bank: indices}) for bank, indices in self._parts]

    def parse(self, responses: Sequence[bytes]) -> tuple[PcrBank, ...]:
        """Return the banks.  Raises EnvironmentFault where the TPM lacks one, FormatError where
        the parts are not of one moment."""
        banks: dict[HashAlgorithm, dict[int, bytes]] = {}
        counters = set()
        for (bank, indices), command, response in zip(
            self._parts, self.commands, responses, strict=True
        ):
            counter, got, digests = commands.parse_pcr_read(command, response)
            counters.add(counter)
            if got != commands.encode_selection({bank: indices}) or len(digests) != len(indices):
                raise EnvironmentFault(
                    "the TPM did not return the PCRs that were asked for",
                    expected=f"{bank} {list(indices)}",
                    got=f"selection {got.hex()}, {len(digests)} values",
                    remedy="is that PCR bank allocated?",
                )
            banks.setdefault(bank, {}).update(zip(indices, digests, strict=True))
        if len(counters) != 1:
            raise FormatError("TPML_DIGEST", 0, "PCRs changed between reads", got=sorted(counters))
        return tuple(PcrBank(bank, values) for bank, values in banks.items())


def quotes_these(attest: bytes, pcrs: Sequence[PcrBank]) -> bool:
    """Whether a quote's pcrDigest is the digest of these values.

    TPMS_ATTEST of a quote ends with pcrDigest (part 2, 10.12.1 and 10.12.8), made with the hash
    of the key's scheme, SHA-256 for ours, over the values in the order of the selection.
    """
    state = hashlib.sha256()
    for bank in pcrs:
        for value in bank.values.values():
            state.update(value)
    return attest.endswith(b"\0\x20" + state.digest())
