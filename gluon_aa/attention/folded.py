"""Relative logits folded into the product of queries and keys: no bias maps.

With q' = [q, a_h, a_w] and k' = [k, onehot(jy), onehot(jx)], q'_i.k'_j = q_i.k_j + a_h[i, jy] + a_w[i, jx]:
one product of depth d + H + W gives all logits, and only it and its softmax are heads x (H*W)^2.
"""
from typing import Any, Tuple

from gluon_aa.attention.heads import relative_logits, split_heads


def attend(F: Any, qkv: Any, rel_h: Any, rel_w: Any, *, height: int, width: int, num_heads: int,
           key_channels: int, value_channels: int) -> Any:
    """See `gluon_aa.attention.relative_attention`."""
    q, k, v = fold(F, qkv, rel_h, rel_w, height=height, width=width, num_heads=num_heads,
                   key_channels=key_channels, value_channels=value_channels)
    output = attend_folded(F, q, k, v)  # (B*heads, d_v, N)
    return F.reshape(output, shape=(-1, value_channels, height, width))  # (B, value_channels, H, W)


def fold(F: Any, qkv: Any, rel_h: Any, rel_w: Any, *, height: int, width: int, num_heads: int,
         key_channels: int, value_channels: int) -> Tuple[Any, Any, Any]:
    """q' (B*heads, N, d + H + W), k' (B*heads, d + H + W, N) and v (B*heads, d_v, N) of the packed map `qkv`.

    Without relative tables q' and k' are the queries and keys themselves, of depth d.
    """
    q, k, v = split_heads(F, qkv, height=height, width=width, num_heads=num_heads,
                          key_channels=key_channels, value_channels=value_channels)
    if rel_h is not None:
        a_h, a_w = relative_logits(F, q, rel_h, rel_w, height=height, width=width,
                                   key_depth=key_channels // num_heads)
        rows, columns = _position_indicators(F, qkv, height, width)
        q = F.concat(q, a_h, a_w, dim=2)  # (B*heads, N, d + H + W)
        k = F.concat(k, _for_each_head(F, rows, k), _for_each_head(F, columns, k), dim=1)  # (B*heads, d + H + W, N)
    return q, k, v


def attend_folded(F: Any, q: Any, k: Any, v: Any) -> Any:
    """Some queries (B*heads, T, D) over all keys (B*heads, D, N) and values (B*heads, d_v, N): (B*heads, d_v, T)."""
    weights = F.softmax(F.batch_dot(q, k), axis=-1)  # (B*heads, T, N)
    return F.batch_dot(v, weights, transpose_b=True)  # (B*heads, d_v, T)


def _position_indicators(F: Any, feature_map: Any, height: int, width: int) -> Any:
    """onehot(jy) (H, N) and onehot(jx) (W, N) on the device of `feature_map` (B, C, H, W)."""
    # arange_like puts the result where its argument is; arange would put it on the default device
    rows = F.one_hot(F.contrib.arange_like(feature_map, axis=2), depth=height)  # (H, H)
    columns = F.one_hot(F.contrib.arange_like(feature_map, axis=3), depth=width)  # (W, W)
    return F.repeat(rows, repeats=width, axis=1), F.tile(columns, reps=(1, height))


def _for_each_head(F: Any, indicators: Any, keys: Any) -> Any:
    """indicators (L, N) -> (B*heads, L, N), B*heads being the first axis of `keys`."""
    return F.broadcast_like(F.expand_dims(indicators, axis=0), keys, lhs_axes=(0,), rhs_axes=(0,))
