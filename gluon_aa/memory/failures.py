"""Telling lack of memory from other failures."""
import re

#: What MXNet, CUDA, oneDNN, OpenBLAS, C++ and NumPy say where memory is too small.
_TOO_LITTLE = re.compile(
    r'failed to allocate cpu memory|out of memory|could not create a memory object|bad_alloc|cannot allocate memory|'
    r'could not (create|initialize) a primitive$|unable to allocate|memoryerror|alloc\S* (still )?failed|'
    r'memory allocation (still )?failed', re.IGNORECASE)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, ours or MXNet's, means that memory was too small."""
    return isinstance(error, MemoryError) or bool(_TOO_LITTLE.search(str(error)))
