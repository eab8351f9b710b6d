"""The devices a training runs on."""
from typing import Any, List, Sequence

from gluon_aa.compat import mx
from gluon_aa.errors import FailedError


def resolve_devices(gpus: Sequence[int], cpus: int = 1) -> List[Any]:
    """MXNet contexts of the GPU ids `gpus`, or of `cpus` CPUs where none are named.

    Raises:
        FailedError: a GPU that is not there.
    """
    if not gpus:
        return [mx.cpu(index) for index in range(cpus)]
    present = mx.context.num_gpus()
    missing = [gpu for gpu in gpus if gpu >= present]
    if missing:
        found = 'none' if present == 0 else f'{present}, numbered from 0'
        raise FailedError(f'--gpus {",".join(map(str, gpus))}: MXNet sees {found} of the GPUs asked for here; '
                          f'use --cpus N to train on the CPU, and gluon-aa doctor to see why')
    return [mx.gpu(gpu) for gpu in gpus]
