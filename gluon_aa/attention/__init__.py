"""2-D relative self-attention as functions of F: one signature, several backends.

Bello et al. 2019, "Attention Augmented Convolutional Networks" (arXiv 1904.09925), sections 3.1
and 3.2. For a query at pixel i = (iy, ix) and a key at j = (jy, jx), with d key channels a head:

    logits[i, j] = (q_i.k_j + q_i.rel_w[jx - ix + W - 1] + q_i.rel_h[jy - iy + H - 1]) / sqrt(d)
    output[i]    = sum_j softmax_j(logits[i, j]) v_j
"""
import functools
import warnings
from typing import Any, Callable, Dict, Optional, Tuple

from gluon_aa import compat
from gluon_aa.attention import folded, native, reference, tiled
from gluon_aa.attention.tiled import DEFAULT_TILE
from gluon_aa.errors import FailedError, Notice, UsageError, unknown

#: Backend name -> the function that implements it.
BACKENDS: Dict[str, Callable[..., Any]] = {
    'reference': reference.attend,
    'folded': folded.attend,
    'tiled': tiled.attend,
    'native': native.attend,
}

#: What `attention_backend` may be.
BACKEND_NAMES: Tuple[str, ...] = ('auto', *BACKENDS)


def resolve_backend(name: str, on_gpus: Optional[bool] = None) -> str:
    """The backend that `name` stands for: `auto` is the fastest one that runs here.

    That is `native` on CPUs where it can be built, which is done now if it never was, and `folded` elsewhere.

    Args:
        on_gpus: whether it is to run on GPUs; None where that is not known: then yes where MXNet sees any.

    Raises:
        UsageError: `name` is not in `BACKEND_NAMES`; `native` on GPUs.
        FailedError: `native` where it cannot be built.
    """
    if name not in BACKEND_NAMES:
        raise unknown('attention backend', name, BACKEND_NAMES)
    if name == 'native' and on_gpus:
        raise UsageError('attention backend native is for CPUs: on GPUs choose folded, tiled or auto')
    if name == 'native' and native.unavailable():
        raise FailedError(f'attention backend native cannot be used: {native.unavailable()}')
    if name != 'auto':
        return name
    if on_gpus is None:
        on_gpus = compat.sees_gpus()
    return 'folded' if on_gpus or _native_is_missing() else 'native'


@functools.lru_cache(maxsize=None)
def _native_is_missing() -> bool:
    """Whether `native` cannot be used here; says why, once."""
    why = native.unavailable()
    if why:
        warnings.warn(f'attention is computed by the slower backend folded: {why}', Notice, stacklevel=2)
    return why is not None


def check_tile(tile: int) -> None:
    """Raise UsageError where a tile would hold no query."""
    if tile < 1:
        raise UsageError(f'tile={tile} must be at least 1 query; one of H*W or more is the whole map')


def relative_attention(F: Any, qkv: Any, rel_h: Any, rel_w: Any, *, height: int, width: int, num_heads: int,
                       key_channels: int, value_channels: int, attention_backend: str = 'auto',
                       tile: int = DEFAULT_TILE) -> Any:
    """Multi-head self-attention over the pixels of a map, with 2-D relative position embeddings.

    Paper symbols: N_h is `num_heads`, d_k `key_channels`, d_v `value_channels` (both over all heads). The
    output comes before the projection W^O. Channels first throughout; heads are contiguous in channels.

    Args:
        F: `mx.nd` or `mx.sym`.
        qkv: (B, 2*key_channels + value_channels, H, W): queries, keys, values, unscaled.
        rel_h: (2H-1, key_channels/num_heads), shared by the heads; None for no relative embeddings.
        rel_w: (2W-1, key_channels/num_heads); None together with `rel_h`.
        height: H. width: W. In pixels.
        num_heads: divides both `key_channels` and `value_channels`.
        attention_backend: one of `BACKEND_NAMES`; all give the same result.
        tile: queries a tile of the backend `tiled`; of no meaning to the others.

    Returns:
        (B, value_channels, H, W).

    Raises:
        UsageError: channels that don't divide by the heads, one table without the other, unknown backend,
            a tile below 1.
        FailedError: `native` where it cannot be built.
    """
    if key_channels % num_heads or value_channels % num_heads:
        raise UsageError(f'{key_channels} key and {value_channels} value channels must both divide by '
                         f'{num_heads} heads')
    if (rel_h is None) != (rel_w is None):
        raise UsageError('rel_h and rel_w come together: give both, or None for both')
    check_tile(tile)
    backend = resolve_backend(attention_backend)
    options = {'tile': tile} if backend == 'tiled' else {}
    return BACKENDS[backend](F, qkv, rel_h, rel_w, height=height, width=width, num_heads=num_heads,
                             key_channels=key_channels, value_channels=value_channels, **options)
