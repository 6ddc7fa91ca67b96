"""System calls of this process that fail from now on, as a sandbox's rules or a machine's limits have them fail."""

from __future__ import annotations

import ctypes
import platform
import struct

PIDFD_OPEN = 434
"""The same number on all architectures."""
_SET_NO_NEW_PRIVILEGES, _SET_SECCOMP, _FILTER = 38, 22, 2
_LOAD_WORD, _JUMP_IF_EQUAL, _RETURN = 0x20, 0x15, 0x06
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000


class _Program(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("instructions", ctypes.c_char_p))


def let_fail(call: int, error: int) -> None:
    """Have the system call of number `call` fail with `error`, in this thread and those that it starts, for ever."""
    assert platform.system() == "Linux"
    instructions = [(_LOAD_WORD, 0, 0, 0), (_JUMP_IF_EQUAL, 0, 1, call), (_RETURN, 0, 0, _FAIL | error)]
    instructions.append((_RETURN, 0, 0, _ALLOW))
    program = _Program(len(instructions), b"".join(struct.pack("HBBI", *each) for each in instructions))
    libc = ctypes.CDLL(None, use_errno=True)
    for arguments in ((_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0), (_SET_SECCOMP, _FILTER, ctypes.byref(program), 0, 0)):
        if libc.prctl(*arguments):
            raise OSError(ctypes.get_errno(), "prctl")
