"""Queries in tiles, and all but the output marked to be computed again in the backward pass. Stock operators only.

MXNet 1.9.1 recomputes in one place, its symbol executor, which gluon_aa/training/recompute.py trains through. There
only `qkv` is kept from the forward pass, and the backward pass holds the logits and the weights of one tile at a time:
memory grows with tile x H*W. Hybridized and eager networks ignore the marks and keep every tile: use `folded` there.
"""
import math
from typing import Any, List

from gluon_aa.attention.folded import attend_folded, fold

#: Queries a tile. Smaller ones save little beside what is linear in H*W anyway (the plan of three layers at 32 x 32,
#: batch 8: 381 MB at 128, 410 at 256, 522 at 512, 778 for the whole map), and their products are slower.
DEFAULT_TILE = 256


def attend(F: Any, qkv: Any, rel_h: Any, rel_w: Any, *, height: int, width: int, num_heads: int,
           key_channels: int, value_channels: int, tile: int = DEFAULT_TILE) -> Any:
    """See `gluon_aa.attention.relative_attention`."""
    with recomputed():
        q, k, v = fold(F, qkv, rel_h, rel_w, height=height, width=width, num_heads=num_heads,
                       key_channels=key_channels, value_channels=value_channels)
        outputs = _in_tiles(F, q, k, v, height * width, tile)
    with recomputed(False):
        # the gradient of a marked concatenation reads the outputs of all tiles computed again, and with them all their
        # weights would be there at once
        output = F.concat(*outputs, dim=2) if len(outputs) > 1 else outputs[0]  # (B*heads, d_v, N)
        return F.reshape(output, shape=(-1, value_channels, height, width))  # (B, value_channels, H, W)


def recomputed(wanted: bool = True) -> Any:
    """Within this context, nodes of a symbol are marked: the executor computes them again in the backward pass, or not.
    """
    from gluon_aa.compat import mx  # here, as the names of backends are asked for where MXNet is not needed
    return mx.AttrScope(force_mirroring=str(wanted))


def _in_tiles(F: Any, q: Any, k: Any, v: Any, pixels: int, tile: int) -> List[Any]:
    """The outputs (B*heads, d_v, T) of q (B*heads, `pixels`, D) in tiles of T = `tile` queries, the last the rest.

    By halves, each of which joins its queries with all keys and values: `amp_multicast` of equal types is the identity,
    with one backward node for its three gradients. So the executor finishes one half's backward pass before it begins
    the other's. By themselves the gradients of values, queries and keys are summed over the tiles in three passes,
    between which all tiles' maps are kept.

    Not all tiles at once, because from eight terms on (MXNET_EXEC_INPLACE_GRAD_SUM_CAP) MXNet lets the terms of a
    gradient's sum add themselves to it, and oneDNN's `amp_multicast` overwrites instead: only the last tile's term
    was left. Can go when tests/attention/test_attention.py passes without.
    """
    if pixels <= tile:
        return [attend_folded(F, q, k, v)]
    half = tile * ((math.ceil(pixels / tile) + 1) // 2)
    # split, whose gradient is a concatenation; slices would be padded with zeros and summed
    outputs = []
    for part, count in zip(F.split_v2(q, (half,), axis=1), (half, pixels - half)):
        joined_q, joined_k, joined_v = F.amp_multicast(part, k, v, num_outputs=3)
        outputs += _in_tiles(F, joined_q, joined_k, joined_v, count, tile)
    return outputs
