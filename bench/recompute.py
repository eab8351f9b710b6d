"""Memory and time of a training step: recompute with tiled attention against hybridized networks that keep their maps.

    python bench/recompute.py --json bench/results/recompute.json
    python bench/recompute.py --net aa_wrn10_2 --batch-sizes 4 --measure 4 --steps 1 --repeats 2

Planned bytes: gluon_aa.memory.plan's for this CPU, without running anything.
Measured, at the batch sizes of --measure, over whole steps from the first allocation on: the peak of MXNet's storage
profiler, the growth of the process (RSS), and, in another process that is not profiled, the seconds of a step.

On CPUs plan and profiler count more than the process takes: oneDNN's softmax, where it writes a gradient in place,
counts a map towards the workspace of the next operator that asks for one, which is then given twice the sum, and
touches none of it (TmpMemMgr of MXNet 1.9.1's mkldnn_base-inl.h; gone with MXNET_MKLDNN_ENABLED=0).
"""
import argparse
import json
import pathlib
import statistics
import subprocess
import sys
import time
from typing import Any, Dict, List

import numpy as np

from gluon_aa import compat, machine
from gluon_aa.compat import mx
from gluon_aa.data import load_dataset
from gluon_aa.memory import meter
from gluon_aa.memory.devices import DEVICES
from gluon_aa.training import automatic
from gluon_aa.training.assembly import build_engine
from gluon_aa.training.config import TrainConfig, load

#: Keys of the configuration, and a name for them.
WAYS: Dict[str, Dict[str, Any]] = {
    'hybridized reference': {'attention_backend': 'reference', 'memory_mode': 'speed'},
    'hybridized folded': {'attention_backend': 'folded', 'memory_mode': 'speed'},
    'executor folded': {'attention_backend': 'folded', 'memory_mode': 'recompute'},
    'hybridized native': {'attention_backend': 'native', 'memory_mode': 'speed'},
    'recompute tiled': {'attention_backend': 'tiled', 'memory_mode': 'recompute'},
    'recompute tiled, blocks': {'attention_backend': 'tiled', 'memory_mode': 'recompute', 'recompute': 'blocks'},
}


def configuration(options: Any, way: str, batch_size: int) -> TrainConfig:
    keys = {'net': options.net, 'dataset': 'synthetic', 'batch_size': batch_size, 'optimizer': 'nag',
            'learning_rate': 1e-3, 'input_size': options.input_size, **WAYS[way]}
    return load(None, {**keys, 'tile': options.tile} if 'tiled' in way and options.tile else keys)


def planned(options: Any, way: str, batch_size: int) -> int:
    """Bytes, without the margin that choices are made with."""
    config = configuration(options, way, batch_size)
    size = tuple(map(int, options.input_size.split('x')))
    config = automatic.apply(config, automatic.candidates(config)[0])
    return automatic.plan(config, 10, (3, *size), DEVICES['cpu']).total


def measure(options: Any) -> Dict[str, Any]:
    """One way in this process: the peak, or the seconds of a step."""
    if options.what == 'seconds':
        return train(options)
    meter.start()
    meter.return_freed_memory()
    with meter.storage(mx.cpu()) as allocated, meter.resident() as held:
        found = train(options)
    return {'peak_bytes': allocated.peak, 'resident_bytes': held.growth, 'loss': found['loss']}


def train(options: Any) -> Dict[str, Any]:
    """Some steps, and their seconds."""
    config = configuration(options, options.way, options.batch_size)
    data = load_dataset('synthetic', input_size=tuple(map(int, options.input_size.split('x'))))
    engine = build_engine(config, data)
    chosen = np.arange(options.batch_size) % len(data.train)
    images, labels = data.train.images[chosen], data.train.labels[chosen]
    seconds: List[float] = []
    for _ in range(options.repeats + 1):
        begin = time.perf_counter()
        for _ in range(options.steps):
            loss, _ = engine.train_step(images, labels, 1e-3).read()
        mx.nd.waitall()
        seconds.append((time.perf_counter() - begin) / options.steps)
    return {'seconds': statistics.median(seconds[1:]), 'fastest': min(seconds[1:]), 'slowest': max(seconds[1:]),
            'threads': compat.THREADS.number, 'loss': loss}


def in_a_process(options: Any, way: str, batch_size: int, what: str) -> Dict[str, Any]:
    command = [sys.executable, __file__, '--net', options.net, '--input-size', options.input_size, '--steps',
               str(options.steps if what == 'seconds' else 1), '--repeats',
               str(options.repeats if what == 'seconds' else 2), '--way', way, '--what', what,
               '--batch-size', str(batch_size)]
    if options.tile:
        command += ['--tile', str(options.tile)]
    # without it MXNet keeps up to four copies of the largest workspace
    environment = {**compat.users_environment(), 'MXNET_CPU_TEMP_COPY': '1'}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, check=False)
    if done.returncode:
        return {'error': (done.stderr.strip().splitlines() or ['it said nothing'])[-1]}
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--net', default='aa_wrn28_10')
    parser.add_argument('--input-size', default='32x32')
    parser.add_argument('--batch-sizes', type=int, nargs='+', default=[8, 64], help='to plan')
    parser.add_argument('--measure', type=int, nargs='*', default=[8], help='batch sizes to measure too')
    parser.add_argument('--tile', type=int)
    parser.add_argument('--steps', type=int, default=2, help='steps a repeat')
    parser.add_argument('--repeats', type=int, default=5, help='after one that warms up')
    parser.add_argument('--json', type=pathlib.Path)
    parser.add_argument('--way', choices=tuple(WAYS), help=argparse.SUPPRESS)  # the other process's end
    parser.add_argument('--what', choices=('peak', 'seconds'), help=argparse.SUPPRESS)
    parser.add_argument('--batch-size', type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        print(json.dumps(measure(options)))
        return
    rows = []
    for batch_size in sorted({*options.batch_sizes, *options.measure}):
        for way in WAYS:
            row: Dict[str, Any] = {'way': way, 'batch_size': batch_size}
            row['planned_bytes'] = planned(options, way, batch_size)
            if batch_size in options.measure:
                row.update(in_a_process(options, way, batch_size, 'peak'))
                row.update(in_a_process(options, way, batch_size, 'seconds'))
            rows.append(row)
            print(describe(row, rows[-1 - list(WAYS).index(way)]), flush=True)
    if options.json:
        about = {'net': options.net, 'input_size': options.input_size, 'tile': options.tile or automatic.DEFAULT_TILE,
                 'steps': options.steps, 'repeats': options.repeats, 'cpu': machine.cpu_model()}
        options.json.write_text(json.dumps({**about, 'results': rows}, indent=1) + '\n')


def describe(row: Dict[str, Any], first: Dict[str, Any]) -> str:
    text = (f'batch {row["batch_size"]:3}  {row["way"]:24} planned {row["planned_bytes"] / 1e6:8.0f} MB '
            f'({row["planned_bytes"] / first["planned_bytes"]:.2f})')
    if 'peak_bytes' in row:
        text += f'  measured peak {row["peak_bytes"] / 1e6:8.0f} MB ({row["peak_bytes"] / first["peak_bytes"]:.2f})'
        text += f', RSS {row["resident_bytes"] / 1e6:8.0f} MB ({row["resident_bytes"] / first["resident_bytes"]:.2f})'
    if 'seconds' in row:
        text += (f'  {row["seconds"]:.2f} s a step ({row["fastest"]:.2f} to {row["slowest"]:.2f}; '
                 f'{row["seconds"] / first["seconds"]:.2f})')
    return text + (f'  {row["error"]}' if 'error' in row else '')


if __name__ == '__main__':
    main()
