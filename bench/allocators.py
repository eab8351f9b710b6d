"""How a process of PyTorch keeps memory: name -> environment variables.

`stock` is glibc as it comes: it returns each map to the kernel when it is freed and faults it in again in the next
step. `kept` makes it keep freed memory, whatever its size, and never map a block by itself.
"""
from typing import Dict

ALLOCATORS: Dict[str, Dict[str, str]] = {
    'stock': {},
    'kept': {'MALLOC_MMAP_MAX_': '0', 'MALLOC_TRIM_THRESHOLD_': str(1 << 40)},
}
