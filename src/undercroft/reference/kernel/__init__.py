"""How Linux patches itself, replayed: from a package's kernel to the code that must be in memory.

One module per mechanism.  Pure: bytes of the package, bytes of the guest and a reader for its
variables go in; the expected image and its explanation come out.
"""
