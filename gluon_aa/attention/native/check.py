"""The compiled operator against the paper's form, on this machine."""
from typing import Any, Dict, List, NamedTuple

import numpy as np

from gluon_aa.attention import relative_attention
from gluon_aa.compat import mx

#: Of the largest magnitude of what it is compared with; both are float32.
TOLERANCE = 2e-5


class Case(NamedTuple):
    """Sizes of one comparison: several panels of keys, whole and partial vectors, one pixel, many channels."""

    height: int
    width: int
    num_heads: int
    key_depth: int
    value_depth: int
    relative: bool = True


CASES = (Case(16, 32, 2, 20, 2), Case(9, 7, 4, 20, 8), Case(1, 1, 1, 1, 1), Case(5, 11, 1, 80, 64),
         Case(8, 8, 2, 3, 5, relative=False))


def largest_difference() -> float:
    """Between outputs and gradients of `native` and `reference`, relative to the largest magnitude of the latter's; NaN
    where `native` gives that.

    Raises:
        FailedError: `native` cannot be used.
    """
    return float(np.max([_difference(case) for case in CASES]))  # Python's max may pass over NaN


def _difference(case: Case) -> float:
    rng = np.random.default_rng(0)
    sizes = {'height': case.height, 'width': case.width, 'num_heads': case.num_heads,
             'key_channels': case.num_heads * case.key_depth, 'value_channels': case.num_heads * case.value_depth}
    inputs = [rng.standard_normal((2, 2 * sizes['key_channels'] + sizes['value_channels'], case.height, case.width))]
    if case.relative:
        inputs += [rng.standard_normal((2 * length - 1, case.key_depth)) for length in (case.height, case.width)]
    head_gradient = rng.standard_normal((2, sizes['value_channels'], case.height, case.width))
    ours, wanted = (_results(backend, inputs, head_gradient, sizes) for backend in ('native', 'reference'))
    # gradients of a single logit are 0, and rounding in the reference
    return float(np.max([np.abs(x - y).max() / max(np.abs(y).max(), 1e-2) for x, y in zip(ours, wanted)]))


def _results(backend: str, inputs: List[np.ndarray], head_gradient: np.ndarray,
             sizes: Dict[str, int]) -> List[np.ndarray]:
    arrays: List[Any] = [mx.nd.array(x) for x in inputs]
    for array in arrays:
        array.attach_grad()
    with mx.autograd.record():
        output = relative_attention(mx.nd, *(arrays + [None, None])[:3], attention_backend=backend, **sizes)
    output.backward(mx.nd.array(head_gradient))
    return [output.asnumpy()] + [array.grad.asnumpy() for array in arrays]
