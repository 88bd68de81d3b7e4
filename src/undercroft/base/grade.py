"""How a reference value became known."""

from __future__ import annotations

import enum


class Grade(enum.Enum):
    """How a reference value became known, best first.  A result states the grades it rests on."""

    SPECIFICATION = "specification"
    """Fixed by a public specification, the same on every machine (a separator event)."""
    PACKAGE = "package"
    """Read or computed from a package whose archive signature chain was followed."""
    BUILT = "built"
    """Computed from something that we built ourselves out of such packages (an initramfs)."""
    FIRMWARE_RUN = "firmware-run"
    """Measured while the packaged firmware ran alone, in the guest's shape, with no guest disk."""
    OBSERVED = "observed"
    """Seen on a machine that was trusted at that moment.  Says what was, not what is good."""
