"""Number formats of training: which device can do which, and MXNet's automatic mixed precision (AMP).

In bfloat16 and float16 convolutions and dense layers compute in 16 bits; weights, their updates, attention's products,
softmax and the loss stay in float32.
"""
import importlib
from typing import Any, Optional

from gluon_aa import machine
from gluon_aa.compat import mx
from gluon_aa.errors import FailedError, UsageError

nn: Any = mx.gluon.nn

#: Any one of these lets oneDNN compute in bfloat16 faster than in float32.
BFLOAT16_INSTRUCTIONS = ('avx512_bf16', 'amx_bf16')

_of_this_process: Optional[str] = None


def amp() -> Any:
    """MXNet's automatic mixed precision, which `import mxnet` leaves out."""
    return importlib.import_module(f'{mx.__name__}.contrib.amp')


def use(dtype: str, on_gpus: bool) -> None:
    """Make `dtype` this process's number format; call it before the network is built.

    AMP replaces MXNet's operators for good, so a process has one format.

    Args:
        dtype: float32, bfloat16 (on CPUs with instructions for it) or float16 (on GPUs, with loss scaling).

    Raises:
        UsageError: a format that the kind of device does not have.
        FailedError: a CPU without the instructions; a process that has another format already.
    """
    global _of_this_process
    _check(dtype, on_gpus)
    if _of_this_process not in (None, dtype):
        raise FailedError(f'this process computes in {_of_this_process} already and MXNet cannot go back: '
                          f'use {dtype} in another process')
    if dtype != 'float32' and _of_this_process is None:
        amp().init(dtype)
    _of_this_process = dtype


def _check(dtype: str, on_gpus: bool) -> None:
    if dtype == 'bfloat16' and on_gpus:
        raise UsageError('bfloat16 is for CPUs: on GPUs choose --dtype float16 or float32')
    if dtype == 'float16' and not on_gpus:
        raise UsageError('MXNet has no float16 on CPUs: choose --dtype float32 or bfloat16, or name --gpus')
    has = machine.cpu_instructions()
    if dtype == 'bfloat16' and not any(has[name] for name in BFLOAT16_INSTRUCTIONS):
        raise FailedError(f'this CPU ({machine.cpu_model()}) has no instructions for bfloat16 '
                          f'({" or ".join(BFLOAT16_INSTRUCTIONS)}): choose --dtype float32')


class _EvenConv2D(nn.Conv2D):
    """A convolution of an odd number of channels, computed with one channel of zeros more."""

    def hybrid_forward(self, F: Any, x: Any, weight: Any, bias: Any = None) -> Any:
        """x (B, C, H, W) -> (B, channels, H', W'); weight (channels, C, h, w)."""
        channels, in_channels, height, width = self.weight.shape
        # in 3-D: oneDNN cannot split the gradient of a 4-D concatenation unless its parts are multiples of 16
        flat = _with_zeros(F, F.reshape(weight, shape=(0, 0, -1)))  # (channels, C + 1, h*w)
        return super().hybrid_forward(F, _with_zeros(F, x), F.reshape(
            flat, shape=(channels, in_channels + 1, height, width)), bias)


def _with_zeros(F: Any, x: Any) -> Any:
    """(B, C, ...) -> (B, C + 1, ...)."""
    return F.concat(x, F.zeros_like(F.slice_axis(x, axis=1, begin=0, end=1)), dim=1)


def even_channels(net: Any) -> None:
    """Let the convolutions of `net` that read an odd number of channels, which are those of images, read one more.

    oneDNN's bfloat16 convolutions take channels in pairs. An odd number sends the stem to a product of matrices in the
    plain layout, which the batch norm after it then has as well: a sixth of resnet34's whole step. The parameters are
    unchanged. Can go when a stem of 3 channels is as fast as one of 4 (DNNL_VERBOSE=1 tells: no `gemm` convolution).
    """
    def widen(block: Any) -> None:
        if type(block) is nn.Conv2D and block.weight.shape[1] % 2 and block._kwargs['num_group'] == 1:
            block.__class__ = _EvenConv2D
    net.apply(widen)
