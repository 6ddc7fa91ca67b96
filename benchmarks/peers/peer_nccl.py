"""A newer NCCL, made small enough to be carried along: without the GPU code that a machine does not load.

The library's section `.nv_fatbin` has containers, one per compilation unit, and each of them entries, one per
architecture. What is not wanted becomes zeros, in place, of which compression leaves nothing; headers stay, so that the
loader finds its way. `__nv_relfatbin` is for linking device code, and not read at run time.
"""

from __future__ import annotations

import lzma
import struct
from collections.abc import Iterator
from pathlib import Path

_CONTAINER = struct.Struct("<IHHQ")
"""Magic number, version, bytes of the header, bytes that follow it."""
_ENTRY = struct.Struct("<HHIQ12xI")
"""Kind, version, bytes of the header, bytes that follow it, …, architecture."""
_MAGIC = 0xBA55ED50
_MACHINE_CODE = 2


def pack(library: Path, packed: Path, architecture: str) -> None:
    """Write `library`, for GPUs of this architecture only, as xz."""
    data = bytearray(library.read_bytes())
    zero_others(data, int(architecture.rstrip("af")))
    with lzma.open(packed, "wb", preset=6) as file:
        file.write(data)


def zero_others(data: bytearray, architecture: int) -> int:
    """Zero what is not for `architecture`, as 90; return how many pieces are left (`ValueError` if none)."""
    kept = 0
    for name, offset, size in _sections(data):
        if name == "__nv_relfatbin":
            data[offset : offset + size] = bytes(size)
        elif name == ".nv_fatbin":
            for kind, found, start, length in _entries(data, offset, offset + size):
                if kind == _MACHINE_CODE and found == architecture:
                    kept += 1
                else:
                    data[start : start + length] = bytes(length)
    if not kept:
        raise ValueError(f"the library has no code for sm_{architecture}")
    return kept


def _sections(data: bytes | bytearray) -> Iterator[tuple[str, int, int]]:
    """Name, offset and size of each section of a 64-bit ELF file."""
    (table,) = struct.unpack_from("<Q", data, 0x28)
    each, count, names = struct.unpack_from("<HHH", data, 0x3A)
    headers = [struct.unpack_from("<I20xQQ", data, table + index * each) for index in range(count)]
    for name, offset, size in headers:
        begin = headers[names][1] + name
        yield data[begin : data.index(0, begin)].decode(), offset, size


def _entries(data: bytes | bytearray, position: int, end: int) -> Iterator[tuple[int, int, int, int]]:
    """Kind, architecture, offset and size of each piece of code between `position` and `end`."""
    while position < end:
        magic, _, header, length = _CONTAINER.unpack_from(data, position)
        if magic != _MAGIC:  # Between containers there may be padding.
            position += 8
            continue
        position += header
        last = position + length
        while position < last:
            kind, _, header, length, architecture = _ENTRY.unpack_from(data, position)
            yield kind, architecture, position + header, length
            position += header + length
        position = -(-last // 8) * 8
