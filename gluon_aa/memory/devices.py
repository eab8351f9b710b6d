"""Devices by name: their memory, what of it a training cannot have, and their speed. And bytes as users write them."""
import re
from typing import Dict, NamedTuple, Optional

from gluon_aa import machine
from gluon_aa.errors import UsageError, unknown

_MIB = 2 ** 20

#: Share of a GPU's memory that MXNet's pool leaves to others: MXNET_GPU_MEM_POOL_RESERVE, per cent [1.9.1 source].
POOL_RESERVE = 0.05

#: Bytes that CUDA, cuBLAS and cuDNN take on a GPU before MXNet allocates anything, and for a moment while they start.
CONTEXT, START_SPIKE = 300 * 10 ** 6, 900 * 10 ** 6


class Device(NamedTuple):
    """What a network could be trained on.

    `memory` is in bytes, as nvidia-smi shows it in total; None: what this machine has free. `flops` are peak FLOP/s by
    number format, the vendor's; empty where nobody can tell.
    """

    name: str
    title: str
    gpu: bool
    memory: Optional[int] = None
    flops: Dict[str, float] = {}

    @property
    def usable(self) -> int:
        """Bytes that a plan, which counts the context, may come to."""
        if self.memory is None:
            return machine.available_memory() or 0
        return int(self.memory * (1 - POOL_RESERVE)) if self.gpu else self.memory


def _gpu(name: str, title: str, mebibytes: int, float32: float, float16: float) -> Device:
    return Device(name, title, True, mebibytes * _MIB, {'float32': float32 * 1e12, 'float16': float16 * 1e12})


#: The vendors' figures; float16 with tensor cores where there are any.
DEVICES: Dict[str, Device] = {device.name: device for device in (
    _gpu('p100-12g', 'P100 PCIe 12 GB', 12198, 9.3, 18.7),
    _gpu('p100-16g', 'P100 PCIe 16 GB', 16280, 9.3, 18.7),
    _gpu('v100-16g', 'V100 PCIe 16 GB', 16160, 14.0, 112),
    _gpu('v100-32g', 'V100 SXM2 32 GB', 32510, 15.7, 125),
    _gpu('t4-16g', 'T4 16 GB', 15109, 8.1, 65),
    _gpu('a100-40g', 'A100 40 GB', 40536, 19.5, 312),
    Device('cpu', 'CPU', False),
)}


def find_device(name: str, memory: Optional[int] = None) -> Device:
    """The device called `name`, with `memory` bytes in place of its own where given.

    Raises:
        UsageError: no such device.
    """
    if name not in DEVICES:
        raise unknown('device', name, DEVICES)
    return DEVICES[name] if memory is None else DEVICES[name]._replace(memory=memory)


_UNITS = {'': 1, 'B': 1, **{f'{prefix}B': 1000 ** power for power, prefix in enumerate('KMGT', 1)},
          **{f'{prefix}iB': 1024 ** power for power, prefix in enumerate('KMGT', 1)}}


def parse_bytes(text: str) -> int:
    """11GiB, 500MB, 1.5 GB or 1000000 in bytes; whether capitals or not does not matter.

    Raises:
        UsageError: no number, a unit that is none of them, or nothing at all left.
    """
    found = re.fullmatch(r'([+-]?[0-9.]+(?:e[0-9]+)?)\s*([a-z]*)', text.strip(), re.IGNORECASE)
    units = {unit.lower(): size for unit, size in _UNITS.items()}
    try:
        number = float(found.group(1)) if found else None
    except ValueError:
        number = None
    if found is None or number is None:
        raise UsageError(f'{text!r} is not a size in bytes, such as 11GiB or 500MB')
    if found.group(2).lower() not in units:
        raise UsageError(f'{text!r}: unknown unit {found.group(2)!r}: use {", ".join(_UNITS)[2:]}')
    count = number * units[found.group(2).lower()]
    if not 1 <= count < 2 ** 60:
        raise UsageError(f'{text!r} must be at least one byte, and less than there is anywhere')
    return int(count)


def in_words(count: float) -> str:
    """Bytes for people: 14.82 GiB, 96 MiB, 11 bytes."""
    if count < 2 ** 20:
        return f'{count / 1024:.0f} KiB' if count >= 1024 else f'{count:.0f} bytes'
    return f'{count / 2 ** 30:.2f} GiB' if count >= 2 ** 30 else f'{count / 2 ** 20:.0f} MiB'
