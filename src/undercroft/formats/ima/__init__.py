"""Linux IMA measurement lists: bytes <-> columns of entries, binary and ASCII.

The kernel's own code is the specification: ``security/integrity/ima/ima_fs.c`` (the two list
formats), ``ima_template.c`` and ``ima_template_lib.c`` (templates and their fields),
``ima_crypto.c`` (what a template hash covers), read at Linux 6.1 and 6.12.

Nothing here replays, verifies or judges: see ``verify.ima`` and ``appraise.ima``.
"""

from undercroft.formats.ima.algorithms import LinuxHash
from undercroft.formats.ima.ascii_list import encode_ascii, parse_ascii
from undercroft.formats.ima.binary_list import encode_binary, parse_binary
from undercroft.formats.ima.buffers import (
    CriticalData,
    DeviceMapperEvent,
    KexecCmdline,
    KeyringKey,
    MeasuredBuffer,
    OpaqueBuffer,
    decode_buffer,
    describe_buffer,
)
from undercroft.formats.ima.detect import ListForm, detect, parse_list
from undercroft.formats.ima.fields import FileDigest, escape_path
from undercroft.formats.ima.inode import InodeMetadata, parse_inode
from undercroft.formats.ima.measurements import ImaEntry, ImaList, Run
from undercroft.formats.ima.signature import ImaSignature, SignatureType, parse_signature
from undercroft.formats.ima.template import BUILTIN_TEMPLATES, Template, template_named

__all__ = [
    "BUILTIN_TEMPLATES",
    "CriticalData",
    "DeviceMapperEvent",
    "FileDigest",
    "ImaEntry",
    "ImaList",
    "ImaSignature",
    "InodeMetadata",
    "KexecCmdline",
    "KeyringKey",
    "LinuxHash",
    "ListForm",
    "MeasuredBuffer",
    "OpaqueBuffer",
    "Run",
    "SignatureType",
    "Template",
    "decode_buffer",
    "describe_buffer",
    "detect",
    "encode_ascii",
    "encode_binary",
    "escape_path",
    "parse_ascii",
    "parse_binary",
    "parse_inode",
    "parse_list",
    "parse_signature",
    "template_named",
]
