"""2-D relative self-attention in PyTorch, written from the equations in gluon_aa/attention/__init__.py: several forms.

Each form takes the packed map of one 1x1 convolution, as a network has it, in either memory layout, and gives the map
before the output projection. Queries, keys and values are split inside it. PyTorch only: neither MXNet nor NumPy.
"""
import functools
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple

import torch
from torch import Tensor
from torch.nn import functional


class Sizes(NamedTuple):
    """Channels are those of all heads."""

    height: int
    width: int
    num_heads: int
    key_channels: int
    value_channels: int


def split_heads(qkv: Tensor, sizes: Sizes) -> Tuple[Tensor, Tensor, Tensor]:
    """qkv (B, C, H, W) -> q scaled by d**-0.5, k (B, heads, N, d) and v (B, heads, N, d_v).

    They are contiguous from a plain map and views of a channels_last one, whose last axis lies in order already.
    """
    pixels, heads = sizes.height * sizes.width, sizes.num_heads
    nhwc = qkv.is_contiguous(memory_format=torch.channels_last) and not qkv.is_contiguous()
    parts = []
    for x in qkv.split([sizes.key_channels, sizes.key_channels, sizes.value_channels], dim=1):
        if nhwc:
            x = x.permute(0, 2, 3, 1).reshape(x.shape[0], pixels, heads, -1).transpose(1, 2)
        else:
            x = x.reshape(x.shape[0], heads, -1, pixels).transpose(2, 3).contiguous()
        parts.append(x)
    q, k, v = parts
    return q * (sizes.key_channels // heads) ** -0.5, k, v


def join_heads(output: Tensor, sizes: Sizes) -> Tensor:
    """(B, heads, N, d_v) -> (B, value_channels, H, W) as a view, in the layout that `output` comes in."""
    return output.transpose(2, 3).reshape(output.shape[0], sizes.value_channels, sizes.height, sizes.width)


def relative_to_absolute(x: Tensor) -> Tensor:
    """(R, L, 2L-1) to (R, L, L): the paper's padding and reshaping (its appendix, rel_to_abs)."""
    length = x.shape[1]
    flat = functional.pad(x, (0, 1)).flatten(1)  # (R, 2L*L)
    rows = functional.pad(flat, (0, length - 1)).view(-1, length + 1, 2 * length - 1)
    return rows[:, :length, length - 1:]


def padded_logits(q: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes) -> Tuple[Tensor, Tensor]:
    """q (B, heads, N, d) -> a_h (B, heads, N, H), a_w (B, heads, N, W), by padding and reshaping."""
    batch, heads, pixels, depth = q.shape
    height, width = sizes.height, sizes.width
    rows = q.reshape(-1, width, depth)
    a_w = relative_to_absolute(rows @ rel_w.T).reshape(batch, heads, pixels, width)
    columns = q.reshape(-1, height, width, depth).transpose(1, 2).reshape(-1, height, depth)
    a_h = relative_to_absolute(columns @ rel_h.T).reshape(-1, width, height, height).transpose(1, 2)
    return a_h.reshape(batch, heads, pixels, height), a_w


def tabled_logits(q: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes) -> Tuple[Tensor, Tensor]:
    """The same, with the tables spread over (query, key) positions first, so that a product gives the logits."""
    batch, heads, pixels, depth = q.shape
    height, width = sizes.height, sizes.width
    spread_h, spread_w = spread(rel_h), spread(rel_w)  # (H, H, d), (W, W, d): [i, j] = rel[j - i + L - 1]
    by_pixel = q.reshape(batch, heads, height, width, depth)
    a_h = torch.einsum('bnyxd,yjd->bnyxj', by_pixel, spread_h).reshape(batch, heads, pixels, height)
    a_w = torch.einsum('bnyxd,xjd->bnyxj', by_pixel, spread_w).reshape(batch, heads, pixels, width)
    return a_h, a_w


def spread(table: Tensor) -> Tensor:
    """(2L-1, d) -> (L, L, d)."""
    length = (table.shape[0] + 1) // 2
    positions = torch.arange(length)
    return table[positions[None, :] - positions[:, None] + length - 1]


Logits = Callable[[Tensor, Tensor, Tensor, Sizes], Tuple[Tensor, Tensor]]


def bias_map(q: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes, logits: Logits) -> Tensor:
    """(B, heads, N, N)."""
    a_h, a_w = logits(q, rel_h, rel_w, sizes)
    return (a_h[..., :, None] + a_w[..., None, :]).flatten(3)


def fold(q: Tensor, k: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes, logits: Logits,
         multiple: int = 1) -> Tuple[Tensor, Tensor]:
    """q' = [q, a_h, a_w], k' = [k, onehot(jy), onehot(jx)], padded with zeros to a `multiple` in depth."""
    a_h, a_w = logits(q, rel_h, rel_w, sizes)
    rows = torch.eye(sizes.height, dtype=q.dtype).repeat_interleave(sizes.width, 0)  # (N, H)
    columns = torch.eye(sizes.width, dtype=q.dtype).repeat(sizes.height, 1)  # (N, W)
    missing = -(q.shape[-1] + sizes.height + sizes.width) % multiple
    queries, keys = [q, a_h, a_w], [k, rows.expand(*k.shape[:2], -1, -1), columns.expand(*k.shape[:2], -1, -1)]
    if missing:
        zeros = q.new_zeros(()).expand(*q.shape[:3], missing)
        queries, keys = [*queries, zeros], [*keys, zeros]
    return torch.cat(queries, -1), torch.cat(keys, -1)


def pad_and_reshape(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes) -> Tensor:
    """The paper's own: three maps added, a softmax, a product."""
    q, k, v = split_heads(qkv, sizes)
    a_h, a_w = padded_logits(q, rel_h, rel_w, sizes)
    logits = (q @ k.transpose(2, 3)).unflatten(3, (sizes.height, sizes.width))  # (B, heads, N, H, W)
    logits = (logits + a_w[..., None, :] + a_h[..., :, None]).flatten(3)
    return join_heads(logits.softmax(-1) @ v, sizes)


def sdpa_bias(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes, logits: Logits) -> Tensor:
    """scaled_dot_product_attention with the relative logits as its attn_mask."""
    q, k, v = split_heads(qkv, sizes)
    mask = bias_map(q, rel_h, rel_w, sizes, logits)
    return join_heads(functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=1.0), sizes)


def sdpa_folded(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes, logits: Logits, multiple: int = 1,
                flash: bool = True) -> Tensor:
    """scaled_dot_product_attention of the folded queries and keys.

    The CPU's flash kernel, which stores no map, takes values of the keys' depth only: `flash` pads them with zeros.
    """
    q, k, v = split_heads(qkv, sizes)
    q, k = fold(q, k, rel_h, rel_w, sizes, logits, multiple)
    depth = v.shape[-1]
    if flash:
        v = functional.pad(v, (0, q.shape[-1] - depth))
    output = functional.scaled_dot_product_attention(q, k, v, scale=1.0)
    return join_heads(output[..., :depth], sizes)


def products_folded(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes, logits: Logits, multiple: int = 1,
                    by_image: bool = False) -> Tensor:
    """Product, softmax, product; `by_image` one image after the other, so that its maps stay in the caches."""
    q, k, v = split_heads(qkv, sizes)
    q, k = fold(q, k, rel_h, rel_w, sizes, logits, multiple)
    if not by_image:
        return join_heads((q @ k.transpose(2, 3)).softmax(-1) @ v, sizes)
    return join_heads(torch.stack([(a @ b.transpose(1, 2)).softmax(-1) @ c
                                   for a, b, c in zip(q.unbind(), k.unbind(), v.unbind())]), sizes)


def flex(qkv: Tensor, rel_h: Tensor, rel_w: Tensor, sizes: Sizes, logits: Logits) -> Tensor:
    """FlexAttention, which adds each logit's terms in its kernel; on CPUs compiled, and without a backward pass.

    It is compiled alone: together with what makes a_h and a_w, PyTorch 2.13's compiler fails an assertion of its own.
    """
    q, k, v = split_heads(qkv, sizes)
    a_h, a_w = logits(q, rel_h, rel_w, sizes)
    width = sizes.width

    def add_terms(score: Tensor, b: Tensor, h: Tensor, i: Tensor, j: Tensor) -> Tensor:
        return score + a_h[b, h, i, j // width] + a_w[b, h, i, j % width]

    return join_heads(_compiled_flex_attention()(q, k, v, score_mod=add_terms, scale=1.0), sizes)


@functools.lru_cache(maxsize=None)
def _compiled_flex_attention() -> Callable[..., Tensor]:
    from torch.nn.attention.flex_attention import flex_attention
    return torch.compile(flex_attention, dynamic=False)


class Form(NamedTuple):
    """A function of (qkv, rel_h, rel_w, sizes), its other arguments, and how it runs."""

    function: Callable[..., Tensor]
    arguments: Dict[str, Any] = {}
    compiled: bool = False
    backward: bool = True

    def build(self, sizes: Sizes) -> Callable[[Tensor, Optional[Tensor], Optional[Tensor]], Tensor]:
        """The form as a function of the three arrays."""
        def attend(qkv: Tensor, rel_h: Tensor, rel_w: Tensor) -> Tensor:
            return self.function(qkv, rel_h, rel_w, sizes, **self.arguments)
        return torch.compile(attend, dynamic=False) if self.compiled else attend


_EAGER = {
    'pad-and-reshape': Form(pad_and_reshape),
    'sdpa-bias': Form(sdpa_bias, {'logits': padded_logits}),
    'sdpa-bias-tabled': Form(sdpa_bias, {'logits': tabled_logits}),
    'sdpa-folded': Form(sdpa_folded, {'logits': padded_logits, 'flash': False}),
    'sdpa-folded-flash': Form(sdpa_folded, {'logits': padded_logits}),
    'sdpa-folded-flash-tabled': Form(sdpa_folded, {'logits': tabled_logits}),
    'sdpa-folded-flash-32': Form(sdpa_folded, {'logits': padded_logits, 'multiple': 32}),
    'products-folded': Form(products_folded, {'logits': padded_logits}),
    'products-folded-tabled': Form(products_folded, {'logits': tabled_logits}),
    'products-folded-16': Form(products_folded, {'logits': padded_logits, 'multiple': 16}),
    'products-folded-by-image': Form(products_folded, {'logits': padded_logits, 'by_image': True}),
}

#: Those that go through torch.compile too. It lays out tensors itself, so padding and tables have less to say.
_COMPILED = ('pad-and-reshape', 'sdpa-bias', 'sdpa-folded', 'sdpa-folded-flash', 'products-folded',
             'products-folded-tabled')

#: Name -> form.
FORMS: Dict[str, Form] = {
    **_EAGER,
    **{f'compiled-{name}': _EAGER[name]._replace(compiled=True) for name in _COMPILED},
    'flex': Form(flex, {'logits': padded_logits}, backward=False),
}
