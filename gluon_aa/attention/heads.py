"""From the packed q/k/v map to heads, and from queries to their relative logits.

Shared by the backends that are made of stock operators.
"""
from typing import Any, Tuple


def split_heads(F: Any, qkv: Any, *, height: int, width: int, num_heads: int, key_channels: int,
                value_channels: int) -> Tuple[Any, Any, Any]:
    """Queries (B*heads, N, d), scaled by d**-0.5; keys (B*heads, d, N); values (B*heads, d_v, N); N = H*W.

    `qkv` is (B, 2*key_channels + value_channels, H, W); d and d_v are the channels of one head.
    """
    channels = 2 * key_channels + value_channels
    key_depth, value_depth = key_channels // num_heads, value_channels // num_heads
    packed = F.reshape(qkv, shape=(-1, channels, height * width))  # (B, channels, N)
    q, k, v = (F.slice_axis(packed, axis=1, begin=begin, end=end) for begin, end in (
        (0, key_channels), (key_channels, 2 * key_channels), (2 * key_channels, channels)))
    q = F.reshape(q, shape=(-1, key_depth, height * width))  # (B*heads, d, N)
    k = F.reshape(k, shape=(-1, key_depth, height * width))  # (B*heads, d, N)
    v = F.reshape(v, shape=(-1, value_depth, height * width))  # (B*heads, d_v, N)
    # swapaxes, not transpose: transpose of a view of a convolution's output breaks oneDNN's backward pass
    q = F.swapaxes(q, dim1=1, dim2=2) * key_depth ** -0.5  # (B*heads, N, d)
    return q, k, v


def relative_logits(F: Any, q: Any, rel_h: Any, rel_w: Any, *, height: int, width: int,
                    key_depth: int) -> Tuple[Any, Any]:
    """Each query's logits for every row and every column of the map.

    q (B*heads, N, d), rel_h (2H-1, d), rel_w (2W-1, d) -> a_h (B*heads, N, H), a_w (B*heads, N, W) with
    a_h[i, jy] = q_i.rel_h[jy - iy + H - 1] and a_w[i, jx] = q_i.rel_w[jx - ix + W - 1]; d is `key_depth`.
    """
    rows = F.reshape(q, shape=(-1, width, key_depth))  # (B*heads*H, W, d)
    a_w = _relative_to_absolute(F, F.dot(rows, rel_w, transpose_b=True), width)  # (B*heads*H, W, W)
    a_w = F.reshape(a_w, shape=(-1, height * width, width))  # (B*heads, N, W)

    columns = F.swapaxes(F.reshape(q, shape=(-1, height, width, key_depth)), dim1=1, dim2=2)  # (B*heads, W, H, d)
    columns = F.reshape(columns, shape=(-1, height, key_depth))  # (B*heads*W, H, d)
    a_h = _relative_to_absolute(F, F.dot(columns, rel_h, transpose_b=True), height)  # (B*heads*W, H, H)
    a_h = F.swapaxes(F.reshape(a_h, shape=(-1, width, height, height)), dim1=1, dim2=2)  # (B*heads, H, W, H)
    a_h = F.reshape(a_h, shape=(-1, height * width, height))  # (B*heads, N, H)
    return a_h, a_w


def _relative_to_absolute(F: Any, x: Any, length: int) -> Any:
    """(R, L, 2L-1), last axis the offset j - i + L - 1, to (R, L, L), last axis the position j.

    The paper's pad-and-reshape (its appendix, `rel_to_abs`): in rows of 2L-1 the wanted run shifts by
    one from query to query; one column of padding makes the flattened rows drift by just that much.
    """
    if length == 1:
        return x  # (R, 1, 1): one position, one offset
    padding = F.zeros_like(F.slice_axis(x, axis=2, begin=0, end=1))  # (R, L, 1)
    flat = F.reshape(F.concat(x, padding, dim=2), shape=(-1, 2 * length * length))  # (R, 2L*L)
    padding = F.zeros_like(F.slice_axis(flat, axis=1, begin=0, end=length - 1))  # (R, L-1)
    rows = F.reshape(F.concat(flat, padding, dim=1), shape=(-1, length + 1, 2 * length - 1))  # (R, L+1, 2L-1)
    rows = F.slice_axis(rows, axis=1, begin=0, end=length)  # (R, L, 2L-1)
    return F.slice_axis(rows, axis=2, begin=length - 1, end=2 * length - 1)  # (R, L, L)
