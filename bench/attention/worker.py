"""What the workers of all frameworks share: arguments, arrays, and serving one turn after another.

A worker lives as long as the comparison of one size and idles between its turns, so that nothing is started, compiled
or loaded in a turn. NumPy and the standard library only.
"""
import argparse
import json
import pathlib
import sys
from typing import Any, Callable, Dict, List

import numpy as np

TESTS = pathlib.Path(__file__).parents[2] / 'tests'  # the NumPy float64 oracle

#: What every worker is checked with before it is timed: H != W, several heads, more than one image.
SMALL = {'height': 3, 'width': 4, 'batch_size': 2, 'num_heads': 2, 'key_channels': 6, 'value_channels': 4}


def arguments(description: str) -> Any:
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument('--form', required=True)
    parser.add_argument('--layout', choices=('plain', 'channels_last'), default='plain')
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--sizes', type=json.loads, required=True, help='a JSON object with the keys of SMALL')
    return parser.parse_args()


def arrays(sizes: Dict[str, int], dtype: Any = np.float32) -> List[np.ndarray]:
    """qkv, rel_h, rel_w, and the gradient of the output."""
    rng, depth = np.random.default_rng(0), sizes['key_channels'] // sizes['num_heads']
    place = sizes['height'], sizes['width']
    return [rng.standard_normal((sizes['batch_size'], 2 * sizes['key_channels'] + sizes['value_channels'], *place)),
            *(rng.standard_normal((2 * length - 1, depth)) * depth ** -0.5 for length in place),
            rng.standard_normal((sizes['batch_size'], sizes['value_channels'], *place))]


def check(found: List[np.ndarray], tolerance: float) -> float:
    """The largest error of `found`, [output, gradients of qkv, rel_h, rel_w], for SMALL, or of the output alone.

    Errors are relative to the oracle's largest magnitude; one beyond the tolerance ends the worker.
    """
    sys.path.append(str(TESTS))
    import oracle
    channels = {name: SMALL[name] for name in ('num_heads', 'key_channels', 'value_channels')}
    inputs = arrays(SMALL)
    wanted = [oracle.attend(*inputs[:3], **channels), *oracle.gradients(*inputs, **channels)]
    errors = [float(np.abs(ours - theirs).max() / np.abs(theirs).max()) for ours, theirs in zip(found, wanted)]
    if not max(errors) < tolerance:
        raise SystemExit(f'differs from the oracle: relative errors {errors}')
    return max(errors)


def serve(run: Callable[[str], float], **facts: Any) -> None:
    """Answer each line {"pass": ..., "warm_up": n, "repeats": n} with the seconds of the repeats."""
    print(json.dumps(facts), flush=True)
    for line in sys.stdin:
        asked = json.loads(line)
        for _ in range(asked['warm_up']):
            run(asked['pass'])
        print(json.dumps({'seconds': [run(asked['pass']) for _ in range(asked['repeats'])]}), flush=True)
