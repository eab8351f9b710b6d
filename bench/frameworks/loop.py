"""What the loops of all frameworks share: arguments, the batch, the timing. NumPy and the standard library only."""
import argparse
import json
import pathlib
import time
from typing import Any, Callable, Tuple

import numpy as np


def peak_resident_bytes() -> int:
    """The most this process ever held, as Linux counts it since its program was loaded."""
    status = pathlib.Path('/proc/self/status').read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith('VmHWM:'))


def parser(description: str) -> argparse.ArgumentParser:
    found = argparse.ArgumentParser(description=description)
    found.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    found.add_argument('--batch-size', type=int, default=128)
    found.add_argument('--threads', type=int, default=2)
    found.add_argument('--warm-up', type=int, default=4, help='steps before the clock starts')
    found.add_argument('--steps', type=int, default=10, help='steps a round')
    found.add_argument('--rounds', type=int, default=1)
    return found


def arguments(description: str) -> Any:
    return parser(description).parse_args()


def batch(size: int) -> Tuple[np.ndarray, np.ndarray]:
    """Images (size, 3, 32, 32) float32 and labels (size,) int64, resident: the same batch in every step."""
    rng = np.random.default_rng(0)
    return rng.standard_normal((size, 3, 32, 32)).astype(np.float32), rng.integers(0, 10, size)


def run(options: Any, step: Callable[[], None], wait: Callable[[], None], framework: str) -> None:
    """Time `rounds` rounds of `steps` steps after the warm-up; prints images/s of each."""
    for _ in range(options.warm_up):
        step()
    wait()
    for _ in range(options.rounds):
        start = time.perf_counter()
        for _ in range(options.steps):
            step()
        wait()
        seconds = time.perf_counter() - start
        print(json.dumps({'framework': framework, 'dtype': options.dtype, 'batch_size': options.batch_size,
                          'images_per_second': options.steps * options.batch_size / seconds,
                          'peak_resident_bytes': peak_resident_bytes()}), flush=True)
