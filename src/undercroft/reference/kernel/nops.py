"""NOPs as the kernel writes them: asm/nops.h, and the two ways alternative.c tidies them.

Until 6.4 add_nops() fills a gap with NOPs of up to 8 bytes and optimize_nops() merges runs of
0x90.  Since 6.7 add_nop() writes one NOP of up to 11 bytes, jumps over a longer gap and fills
it with INT3, and optimize_nops() merges NOPs of every length.
"""

from __future__ import annotations

from undercroft.reference.kernel.insn import decode

NOPS = (
    b"",
    bytes.fromhex("90"),
    bytes.fromhex("6690"),
    bytes.fromhex("0f1f00"),
    bytes.fromhex("0f1f4000"),
    bytes.fromhex("0f1f440000"),
    bytes.fromhex("660f1f440000"),
    bytes.fromhex("0f1f8000000000"),
    bytes.fromhex("0f1f840000000000"),
    bytes.fromhex("2e0f1f840000000000"),
    bytes.fromhex("662e0f1f840000000000"),
    bytes.fromhex("66662e0f1f840000000000"),
)
NOP5 = NOPS[5]
INT3 = b"\xcc"


def short_nops(size: int) -> bytes:
    """Fill ``size`` bytes with NOPs of at most 8 bytes (add_nops)."""
    return NOPS[8] * (size // 8) + NOPS[size % 8]


def one_nop(size: int) -> bytes:
    """Fill ``size`` bytes with one effective NOP (add_nop)."""
    if size < len(NOPS):
        return NOPS[size]
    if size < 128:
        return (b"\xeb" + bytes([size - 2])).ljust(size, INT3)
    return (b"\xe9" + (size - 5).to_bytes(4, "little")).ljust(size, INT3)


def merge_single_nops(code: bytes, size: int) -> bytes:
    """Merge runs of two and more 0x90 in ``code[:size]`` (optimize_nops until 6.4).

    ``code`` may go on behind ``size``: the kernel decodes in place, so the last instruction may
    reach past the site.
    """
    out = bytearray(code)
    at = 0
    while at < size:
        insn = decode(bytes(out[at : at + 15]))
        if insn is None:
            break
        if insn.length == 1 and insn.opcode == 0x90:
            end = at
            while end < size and out[end] == 0x90:
                end += 1
            if end - at > 1:
                out[at:end] = short_nops(end - at)
            at = end
        else:
            at += insn.length
    return bytes(out[:size])


def merge_nops(code: bytes) -> bytes:
    """Merge runs of NOPs of every length into one (optimize_nops since 6.7)."""
    out = bytearray(code)
    at, size = 0, len(code)
    while at < size:
        insn = decode(bytes(out[at : at + 15]))
        if insn is None:
            break
        end = at + insn.length
        if insn.is_nop:
            if end == size:  # "Has the NOP already been optimized?"
                break
            while end < size:
                following = decode(bytes(out[end : end + 15]))
                if following is None or not following.is_nop:
                    break
                end += following.length
            out[at:end] = one_nop(end - at)
        at = end
    return bytes(out)
