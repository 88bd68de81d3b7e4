"""The guest's own TPM as the secure kernel's voice.

A multiplexer process stands between QEMU's TPM emulator device and swtpm (``multiplexer``,
``interposer``; run with ``python -m undercroft.securekernel.vtpm``).  The guest is held to
locality 0.  The secure kernel speaks at localities 1 to 4 through :class:`VtpmClient`.

It does not judge what it quotes, and it parses no key, attestation or signature.
"""

from undercroft.securekernel.vtpm.client import AttestationKey, Quote, VtpmClient
from undercroft.securekernel.vtpm.keys import AK_POLICY, SECURE_KERNEL_LOCALITY, EkType, KeyType
from undercroft.securekernel.vtpm.launchlog import LaunchConfig
from undercroft.securekernel.vtpm.rc import TpmError, VtpmUnavailable

__all__ = [
    "AK_POLICY",
    "SECURE_KERNEL_LOCALITY",
    "AttestationKey",
    "EkType",
    "KeyType",
    "LaunchConfig",
    "Quote",
    "TpmError",
    "VtpmClient",
    "VtpmUnavailable",
]
