"""The paper's form (Bello et al. 2019, section 3.2 and appendix): every map is made, plain and slow.

Memory: several maps of heads x (H*W)^2 numbers an image: the content logits, the logits with each
relative term added, the softmax.
"""
from typing import Any

from gluon_aa.attention.heads import relative_logits, split_heads


def attend(F: Any, qkv: Any, rel_h: Any, rel_w: Any, *, height: int, width: int, num_heads: int,
           key_channels: int, value_channels: int) -> Any:
    """See `gluon_aa.attention.relative_attention`."""
    pixels = height * width
    q, k, v = split_heads(F, qkv, height=height, width=width, num_heads=num_heads,
                          key_channels=key_channels, value_channels=value_channels)
    logits = F.batch_dot(q, k)  # (B*heads, N, N)
    if rel_h is not None:
        a_h, a_w = relative_logits(F, q, rel_h, rel_w, height=height, width=width,
                                   key_depth=key_channels // num_heads)
        logits = F.reshape(logits, shape=(-1, pixels, height, width))  # (B*heads, N, H, W)
        logits = F.broadcast_add(logits, F.expand_dims(a_w, axis=2))  # + (B*heads, N, 1, W)
        logits = F.broadcast_add(logits, F.expand_dims(a_h, axis=3))  # + (B*heads, N, H, 1)
        logits = F.reshape(logits, shape=(-1, pixels, pixels))  # (B*heads, N, N)
    weights = F.softmax(logits, axis=-1)  # (B*heads, N, N)
    output = F.batch_dot(v, weights, transpose_b=True)  # (B*heads, d_v, N)
    return F.reshape(output, shape=(-1, value_channels, height, width))  # (B, value_channels, H, W)
