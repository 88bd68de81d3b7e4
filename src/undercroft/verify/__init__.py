"""Is it authentic and fresh?

Signatures, nonces, certificate chains and log replay.  Takes ``Unverified*`` values from
``formats`` and raises VerificationError or returns the verified value, never a bool.  Nothing
here decides whether an authentic value is acceptable (``appraise``).
"""
