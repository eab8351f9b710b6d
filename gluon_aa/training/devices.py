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
        those = f' (ids 0 to {present - 1}): name those, or' if present else ':'
        raise FailedError(f'--gpus {",".join(map(str, gpus))}: MXNet sees {present} GPUs here{those} '
                          f'train on the CPU with --cpus {len(gpus)}; gluon-aa doctor tells more')
    return [mx.gpu(gpu) for gpu in gpus]
