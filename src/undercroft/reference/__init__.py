"""What good looks like, and where that knowledge came from.

Reference values, matching that returns the difference, prediction of PCRs, replay of the
kernel's own patching.  Pure: packages are fetched in ``packages``.
"""
