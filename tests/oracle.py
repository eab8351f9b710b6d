"""Relative self-attention in NumPy float64, written from the equations of Bello et al. 2019, section 3.2.

Loops over pixels, one head at a time, no tricks: what every backend is compared with. The gradients are the chain
rule spelled out for the same loops; tests/attention/test_oracle.py holds them against finite differences.
"""
import numpy as np


def _heads(qkv, num_heads, key_channels, value_channels):
    """(B, 2*d_k + d_v, H, W) -> q, k (B, heads, H, W, d) and v (B, heads, H, W, d_v / heads)."""
    batch, _, height, width = qkv.shape
    q, k, v = np.split(qkv, [key_channels, 2 * key_channels], axis=1)
    return tuple(np.moveaxis(x.reshape(batch, num_heads, -1, height, width), 2, 4) for x in (q, k, v))


def _pixels(height, width):
    return [(y, x) for y in range(height) for x in range(width)]


def _weights(q, k, rel_h, rel_w):
    """Softmax over keys j of (q_i.k_j + q_i.r_w(jx - ix) + q_i.r_h(jy - iy)) / sqrt(d); (N, N)."""
    height, width, depth = q.shape
    pixels = _pixels(height, width)
    logits = np.zeros((len(pixels), len(pixels)))
    for i, (iy, ix) in enumerate(pixels):
        for j, (jy, jx) in enumerate(pixels):
            vector = k[jy, jx].copy()
            if rel_h is not None:
                vector += rel_h[jy - iy + height - 1] + rel_w[jx - ix + width - 1]
            logits[i, j] = q[iy, ix] @ vector / np.sqrt(depth)
    exponentials = np.exp(logits - logits.max(axis=1, keepdims=True))
    return exponentials / exponentials.sum(axis=1, keepdims=True)


def attend(qkv, rel_h, rel_w, *, num_heads, key_channels, value_channels):
    """(B, value_channels, H, W); rel_h and rel_w may be None."""
    qkv = np.asarray(qkv, dtype=np.float64)
    batch, _, height, width = qkv.shape
    q, k, v = _heads(qkv, num_heads, key_channels, value_channels)
    output = np.zeros((batch, num_heads, value_channels // num_heads, height, width))
    for b in range(batch):
        for h in range(num_heads):
            weights = _weights(q[b, h], k[b, h], rel_h, rel_w)
            for i, (iy, ix) in enumerate(_pixels(height, width)):
                output[b, h, :, iy, ix] = sum(weights[i, j] * v[b, h, jy, jx]
                                              for j, (jy, jx) in enumerate(_pixels(height, width)))
    return output.reshape(batch, value_channels, height, width)


def gradients(qkv, rel_h, rel_w, head_gradient, *, num_heads, key_channels, value_channels):
    """Gradients of sum(head_gradient * attend(...)) for qkv, rel_h and rel_w (None where there are none)."""
    qkv = np.asarray(qkv, dtype=np.float64)
    batch, _, height, width = qkv.shape
    pixels = _pixels(height, width)
    q, k, v = _heads(qkv, num_heads, key_channels, value_channels)
    d_out = np.moveaxis(np.asarray(head_gradient, np.float64).reshape(batch, num_heads, -1, height, width), 2, 4)
    d_q, d_k, d_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    d_rel_h = None if rel_h is None else np.zeros_like(rel_h, dtype=np.float64)
    d_rel_w = None if rel_w is None else np.zeros_like(rel_w, dtype=np.float64)
    scale = 1 / np.sqrt(key_channels // num_heads)
    for b in range(batch):
        for h in range(num_heads):
            weights = _weights(q[b, h], k[b, h], rel_h, rel_w)
            for i, (iy, ix) in enumerate(pixels):
                d_weights = np.array([d_out[b, h, iy, ix] @ v[b, h, jy, jx] for jy, jx in pixels])
                d_logits = weights[i] * (d_weights - weights[i] @ d_weights)
                for j, (jy, jx) in enumerate(pixels):
                    d_v[b, h, jy, jx] += weights[i, j] * d_out[b, h, iy, ix]
                    step = d_logits[j] * scale
                    d_k[b, h, jy, jx] += step * q[b, h, iy, ix]
                    d_q[b, h, iy, ix] += step * k[b, h, jy, jx]
                    if rel_h is not None:
                        d_q[b, h, iy, ix] += step * (rel_h[jy - iy + height - 1] + rel_w[jx - ix + width - 1])
                        d_rel_h[jy - iy + height - 1] += step * q[b, h, iy, ix]
                        d_rel_w[jx - ix + width - 1] += step * q[b, h, iy, ix]
    packed = [np.moveaxis(x, 4, 2).reshape(batch, -1, height, width) for x in (d_q, d_k, d_v)]
    return np.concatenate(packed, axis=1), d_rel_h, d_rel_w


def attend_and_gradients(qkv, rel_h, rel_w, head_gradient, *, num_heads, key_channels, value_channels):
    """[output, gradients of qkv, rel_h, rel_w] (the latter two where there are any), as `attend` and `gradients` have
    them, by whole arrays: for maps of hundreds of pixels. test_oracle.py holds it against the loops."""
    qkv, d_out = np.asarray(qkv, np.float64), np.asarray(head_gradient, np.float64)
    batch, _, height, width = qkv.shape
    q, k, v = (x.reshape(batch, num_heads, height * width, -1)
               for x in _heads(qkv, num_heads, key_channels, value_channels))
    d_out = d_out.reshape(batch, num_heads, -1, height * width).swapaxes(2, 3)
    scale = 1 / np.sqrt(key_channels // num_heads)
    y, x = np.divmod(np.arange(height * width), width)
    vectors = np.zeros((height * width, height * width, q.shape[3]))  # of each query and key: their offset's
    if rel_h is not None:
        offset_h, offset_w = y - y[:, None] + height - 1, x - x[:, None] + width - 1
        vectors += np.asarray(rel_h, np.float64)[offset_h] + np.asarray(rel_w, np.float64)[offset_w]
    logits = scale * (q @ k.swapaxes(2, 3) + np.einsum('bnid,ijd->bnij', q, vectors))
    weights = np.exp(logits - logits.max(axis=3, keepdims=True))
    weights /= weights.sum(axis=3, keepdims=True)
    d_weights = d_out @ v.swapaxes(2, 3)
    d_logits = scale * weights * (d_weights - (weights * d_weights).sum(axis=3, keepdims=True))
    gradients = [d_logits @ k + np.einsum('bnij,ijd->bnid', d_logits, vectors),
                 d_logits.swapaxes(2, 3) @ q, weights.swapaxes(2, 3) @ d_out]

    def packed(x):
        return x.swapaxes(2, 3).reshape(batch, -1, height, width)
    results = [packed(weights @ v), np.concatenate([packed(x) for x in gradients], axis=1)]
    if rel_h is not None:
        d_vectors = np.einsum('bnij,bnid->ijd', d_logits, q)
        for table, offset in ((rel_h, offset_h), (rel_w, offset_w)):
            results.append(np.zeros(np.shape(table)))
            np.add.at(results[-1], offset, d_vectors)
    return results


def finite_differences(function, x, step=1e-6):
    """Central differences of the scalar `function` at the float64 array `x`."""
    result = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        ahead, behind = x.copy(), x.copy()
        ahead[index] += step
        behind[index] -= step
        result[index] = (function(ahead) - function(behind)) / (2 * step)
    return result
