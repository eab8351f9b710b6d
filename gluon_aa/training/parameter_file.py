"""MXNet's file of dense arrays (`mx.nd.save`, NDARRAY_V2), looked through without MXNet.

MXNet does not notice when a disk refuses the last bytes of a file, and its reader can abort the process on one that is
damaged or no such file at all. The layout, little-endian [1.9.1 source, src/ndarray/ndarray.cc]:

    uint64 0x112, uint64 0; uint64 number of arrays, the arrays; uint64 number of names, the names
    array: uint32 0xF993FAC9, int32 storage type (0: dense), int32 axes, int64 each axis, int32 device type,
           int32 device number, int32 element type, the elements
    name:  uint64 length, the bytes
"""
import os
import pathlib
import struct
from typing import Any, BinaryIO, Dict, Mapping, Tuple

import numpy as np

_MAGIC, _ARRAY_MAGIC = 0x112, 0xF993FAC9
#: MXNet's numbers of element types.
_TYPES = {0: np.float32, 1: np.float64, 2: np.float16, 3: np.uint8, 4: np.int32, 5: np.int8, 6: np.int64}
_MOST_AXES, _LONGEST_NAME = 32, 4096


class NotAParameterFile(ValueError):
    """The file is damaged or something else; says where it goes wrong."""


def size(arrays: Mapping[str, Any]) -> int:
    """The bytes that MXNet's file of `arrays` (name -> NDArray) has when all of it was written."""
    header, counts = 16, 2 * 8
    return header + counts + sum(
        4 + 4 + 4 + 8 * len(array.shape) + 8 + 4 + int(array.size) * np.dtype(array.dtype).itemsize
        + 8 + len(name.encode()) for name, array in arrays.items())


def shapes(path: pathlib.Path) -> Dict[str, Tuple[int, ...]]:
    """The names and shapes of the arrays in `path`; nothing but sizes and names is read.

    Raises:
        NotAParameterFile: anything but a whole file of named dense arrays. OSError: it cannot be read.
    """
    with open(path, 'rb') as file:
        end = os.fstat(file.fileno()).st_size
        if _numbers(file, '<QQ')[0] != _MAGIC:
            raise NotAParameterFile('it does not begin like one')
        found = [_skip_array(file, end) for _ in range(_count(file, end))]
        names = [_name(file) for _ in range(_count(file, end))]
        if file.tell() != end or len(names) != len(found) or len(set(names)) != len(names):
            raise NotAParameterFile('its end is not where it should be, or arrays and names do not match')
    return dict(zip(names, found))


def _numbers(file: BinaryIO, form: str) -> Tuple[int, ...]:
    data = file.read(struct.calcsize(form))
    if len(data) < struct.calcsize(form):
        raise NotAParameterFile(f'it ends too early, at byte {file.tell():,}')
    return struct.unpack(form, data)


def _count(file: BinaryIO, end: int) -> int:
    count = _numbers(file, '<Q')[0]
    if count > end:  # each takes more than a byte
        raise NotAParameterFile(f'it claims to hold {count:,} arrays')
    return count


def _skip_array(file: BinaryIO, end: int) -> Tuple[int, ...]:
    """The shape of the array that begins here; goes on to its end."""
    magic, storage, axes = _numbers(file, '<Iii')
    if magic != _ARRAY_MAGIC or storage != 0 or not 0 < axes <= _MOST_AXES:
        raise NotAParameterFile(f'there is no dense array at byte {file.tell():,}')
    shape = _numbers(file, f'<{axes}q')
    _, _, kind = _numbers(file, '<iii')
    if kind not in _TYPES or min(shape) < 0:
        raise NotAParameterFile(f'there is no array of numbers at byte {file.tell():,}')
    total = np.dtype(_TYPES[kind]).itemsize
    for length in shape:  # Python's integers do not overflow
        total *= length
    if file.tell() + total > end:
        raise NotAParameterFile(f'it ends within the array at byte {file.tell():,}')
    file.seek(total, os.SEEK_CUR)
    return shape


def _name(file: BinaryIO) -> str:
    length = _numbers(file, '<Q')[0]
    if length > _LONGEST_NAME:
        raise NotAParameterFile(f'it claims to hold a name of {length:,} bytes')
    data = file.read(length)
    try:
        return data.decode()
    except UnicodeDecodeError:
        raise NotAParameterFile('it holds a name that is no text') from None
