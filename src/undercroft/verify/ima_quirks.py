"""What older or unusual kernels do to their IMA PCRs, and is believed all the same: a table."""

from __future__ import annotations

from undercroft.verify.quirks import Quirk

PADDED_SHA1 = Quirk(
    "ima.padded-sha1",
    "the bank was extended with the SHA-1 template hash padded with zeros, not with its own hash",
    "Linux before 5.8; later in a bank whose algorithm the kernel cannot name (ima_crypto.c)",
)
BOOT_AGGREGATE_PCRS_0_7 = Quirk(
    "ima.boot-aggregate-pcrs-0-7",
    "boot_aggregate covers PCRs 0 to 7 of a bank other than SHA-1, not 0 to 9",
    "Linux before 5.8 (commit 20c59ce010f8), ima_crypto.c: ima_calc_boot_aggregate_tfm",
)
QUIRKS = (PADDED_SHA1, BOOT_AGGREGATE_PCRS_0_7)
