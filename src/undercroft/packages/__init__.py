"""Distribution packages, each with the chain of digests from the archive's signature to its bytes.

``release`` and ``index`` check (bytes in, values out); ``apt`` and ``gpgv`` run the programs;
``archive`` joins them: :meth:`Archive.fetch` gives :class:`VerifiedPackage` values and nothing
else.  ``deb`` reads what is inside a package.  Nothing here decides which packages are good.
"""

from undercroft.packages.archive import Archive, Refresh
from undercroft.packages.deb import DebEntry, EntryKind, read_deb
from undercroft.packages.index import Stanza
from undercroft.packages.release import FreshnessRule, VerifiedRelease
from undercroft.packages.verified import VerifiedPackage

__all__ = [
    "Archive",
    "DebEntry",
    "EntryKind",
    "FreshnessRule",
    "Refresh",
    "Stanza",
    "VerifiedPackage",
    "VerifiedRelease",
    "read_deb",
]
