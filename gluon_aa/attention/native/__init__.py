"""One fused operator for CPUs, in C++: no map of logits is ever stored.

    kernel.h, kernel.cc   the mathematics, free of MXNet; begin here
    products.h            the two kinds of products it is made of
    simd.h                vectors as wide as the CPU's
    operator.cc           the kernel as an operator of MXNet
    build.py              compiled once per machine, kept in a cache

Beside its output the operator keeps one number per query and head for the backward pass, and works in scratch memory
that grows with H*W.
"""
import ctypes
import functools
import pathlib
from typing import Any, Optional

from gluon_aa import compat
from gluon_aa.attention.native import build
from gluon_aa.errors import FailedError, UsageError, reason


OPERATOR = 'gluon_aa_attention'


@functools.lru_cache(maxsize=None)
def load() -> None:
    """Build the operator where this machine has none yet, and give it to MXNet, once a process.

    Raises:
        FailedError: no compiler, a build that fails, a cache that cannot be used.
    """
    mx, path = compat.mx, build.library()  # not imported above: the names of backends are asked for without MXNet
    try:
        _register(mx, path)
    except mx.base.MXNetError as error:
        raise FailedError(f'MXNet cannot load {path}: {reason(error)}; remove it, and it is built anew') from error


def _register(mx: Any, path: pathlib.Path) -> None:
    """What mx.library.load does, for this one operator: that makes the functions of all operators anew, in one second,
    and so undoes what AMP did to them: a network would go on in float32 without a word."""
    base = mx.base
    base.check_call(base._LIB.MXLoadLib(base.c_str(str(path)), base.mx_uint(0)))
    handle = base.OpHandle()
    base.check_call(base._LIB.NNGetOpHandle(base.c_str(OPERATOR), ctypes.byref(handle)))
    for module, make in ((mx.nd, mx.nd.register._make_ndarray_function),
                         (mx.sym, mx.sym.register._make_symbol_function)):
        setattr(module, OPERATOR, make(handle, OPERATOR, OPERATOR))


@functools.lru_cache(maxsize=None)
def unavailable() -> Optional[str]:
    """Why the operator cannot be used here, or None. Builds it where need be."""
    try:
        load()
    except FailedError as error:
        return str(error)
    return None


def attend(F: Any, qkv: Any, rel_h: Any, rel_w: Any, *, height: int, width: int, num_heads: int,
           key_channels: int, value_channels: int) -> Any:
    """See `gluon_aa.attention.relative_attention`; on CPUs, in float32 whatever the type of `qkv`."""
    if F is compat.mx.nd and not qkv.context.device_type.startswith('cpu'):
        raise UsageError(f'attention backend native is for CPUs and qkv is on {qkv.context}: choose folded or tiled')
    load()
    inputs = [qkv] if rel_h is None else [qkv, rel_h, rel_w]
    output, _ = getattr(F, OPERATOR)(
        *(_owned(F, x) for x in inputs), num_heads=num_heads, key_channels=key_channels, value_channels=value_channels,
        height=height, width=width, relative=int(rel_h is not None))
    return output  # (B, value_channels, H, W)


def _owned(F: Any, x: Any) -> Any:
    """`x` in float32, as an array that nothing else reads or adds gradients to.

    MXNet does not tell a library's operator to add to a gradient (`grad_req='add'`): it would overwrite it. `identity`
    adds for it. Neither it nor `amp_cast` costs memory or time in a compiled graph, unless `x` is the graph's own
    input. Can go when tests/attention/native/test_operator.py passes without.
    """
    return F.amp_cast(F.identity(x), dtype='float32')
