"""Typed policy and its parser.  What must hold for a machine to be called good.

``policies/*.toml`` are shipped with the package; the shell reads the file and hands the text to
:func:`parse_policy`.
"""

from undercroft.policy.combine import all_of
from undercroft.policy.model import (
    BootRules,
    FileRules,
    Policy,
    QuoteRules,
    ReferenceRules,
    Requirement,
    ResultRules,
    SecureKernelRules,
)
from undercroft.policy.parse import encode_policy, parse_policy
from undercroft.policy.rules import (
    Action,
    Expression,
    RunningRules,
    SecureBootMode,
    UpdateRules,
)

__all__ = [
    "Action",
    "BootRules",
    "Expression",
    "FileRules",
    "Policy",
    "QuoteRules",
    "ReferenceRules",
    "Requirement",
    "ResultRules",
    "RunningRules",
    "SecureBootMode",
    "SecureKernelRules",
    "UpdateRules",
    "all_of",
    "encode_policy",
    "parse_policy",
]
