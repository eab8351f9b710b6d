"""images/s and memory of training aa_wrn28_10, attention in all twelve blocks, in gluon-aa and PyTorch, in one run.

    python -m venv torch && torch/bin/pip install torch==2.13.0 numpy
    .venv/bin/python bench/network/compare.py --pytorch torch/bin/python --json bench/results/network.json

Each round starts every network once, in turn, in its own process: what else the machine does meets all of them. Ratios
are medians of the rounds' ratios. PyTorch's forms are those of bench/attention/pytorch_forms.py, eager or with the
whole network compiled, with both allocators of bench/allocators.py; `none` is the plain wrn28_10. Peaks: resident is
the process's, Python and libraries included; storage is MXNet's own count, in a run of its own. `--check` compares
the two frameworks' logits for the same weights, and times nothing.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
from typing import Any, Dict, List, NamedTuple

import numpy as np

from gluon_aa import machine
from gluon_aa.attention import BACKENDS

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
from allocators import ALLOCATORS  # noqa: E402

TOLERANCE = 1e-4  # of the largest logit, in float32 over 28 layers

Row = Dict[str, Any]


class Variant(NamedTuple):
    """What takes turns."""

    framework: str
    form: str
    allocator: str = 'stock'

    def __str__(self) -> str:
        return f'{self.framework} {self.form}' + (f' ({self.allocator})' if self.framework == 'pytorch' else '')


def main() -> None:
    options = _options()
    if options.check:
        check(options)
        return
    chosen = [Variant('mxnet', backend) for backend in ('none', *options.attention_backend)]
    chosen += [Variant('pytorch', form, allocator) for form in ('none', *options.forms)
               for allocator in options.allocators]
    results: List[Row] = []
    failed: Dict[Variant, str] = {}
    for number in range(options.rounds):
        for variant in [variant for variant in chosen if variant not in failed]:
            try:
                row = one(variant, options)
            except RuntimeError as error:
                failed[variant] = str(error)
                print(f'{variant} failed: {error}', flush=True)
                continue
            row['version'] = row.pop('framework')  # 'MXNet 1.9.1'; the variant's own says which of the two
            results.append({**variant._asdict(), 'round': number, **row})
            print(f'round {number + 1}: {variant} {row["images_per_second"]:.2f} images/s', flush=True)
    storage = {}
    for variant in chosen:
        if variant.framework == 'mxnet' and variant not in failed:
            storage[variant.form] = one(variant, options, '--profile')['peak_storage_bytes']
    report(results, storage)
    if options.json:
        about = {'cpu': machine.cpu_model(), 'threads': options.threads, 'warm_up': options.warm_up,
                 'steps': options.steps, 'source': 'measured'}
        failures = {str(variant): error for variant, error in failed.items()}
        options.json.write_text(json.dumps({**about, 'failed': failures, 'peak_storage_bytes': storage,
                                            'results': results}, indent=1) + '\n')


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pytorch', required=True, help="Python of PyTorch's environment")
    parser.add_argument('--attention-backend', nargs='+', default=list(BACKENDS))
    parser.add_argument('--forms', nargs='+', default=[
        'pad-and-reshape', 'sdpa-bias', 'sdpa-folded-flash', 'products-folded', 'compiled-pad-and-reshape',
        'compiled-products-folded'])
    parser.add_argument('--allocators', nargs='+', choices=tuple(ALLOCATORS), default=list(ALLOCATORS))
    parser.add_argument('--dtype', choices=('float32', 'bfloat16'), default='float32')
    parser.add_argument('--batch-size', type=int, default=8)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--warm-up', type=int, default=2, help='steps before the clock starts')
    parser.add_argument('--steps', type=int, default=3, help='steps a round')
    parser.add_argument('--time-limit', type=float, default=900.0, help='seconds a turn')
    parser.add_argument('--check', action='store_true')
    parser.add_argument('--json', type=pathlib.Path, help='where to write the figures')
    return parser.parse_args()


def one(variant: Variant, options: Any, *flags: str) -> Row:
    """The figures of one turn, in a process of its own; RuntimeError says why there are none."""
    python = options.pytorch if variant.framework == 'pytorch' else sys.executable
    command = [python, str(HERE / f'{variant.framework}_network.py'), '--form', variant.form, '--dtype', options.dtype,
               '--batch-size', str(options.batch_size), '--threads', str(options.threads),
               '--warm-up', str(options.warm_up), '--steps', str(options.steps), *flags]
    environment = {**os.environ, 'OMP_NUM_THREADS': str(options.threads), **ALLOCATORS[variant.allocator]}
    if '--profile' in flags:
        environment['MXNET_CPU_TEMP_COPY'] = '1'  # one workspace, not four in turn: repeatable
    try:
        done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                              universal_newlines=True, check=False, timeout=options.time_limit)
    except subprocess.TimeoutExpired:
        raise RuntimeError(f'not done after {options.time_limit:g} s') from None
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ['it said nothing'])[-1]
        raise RuntimeError(f'ended with code {done.returncode}: {last[:300]}')
    lines = done.stdout.strip().splitlines()
    return dict(json.loads(lines[-1])) if lines else {}


def check(options: Any) -> None:
    """Every backend and form asked for gives the same logits for the same weights."""
    with tempfile.TemporaryDirectory() as directory:
        for backend in options.attention_backend:
            weights = str(pathlib.Path(directory, 'weights.npz'))
            one(Variant('mxnet', backend), options, '--check', weights)
            with np.load(f'{weights}.logits.npz') as arrays:
                expected = [arrays[name] for name in arrays.files]
            saved = pathlib.Path(weights).read_bytes()
            for form in [form for form in options.forms if not form.startswith('compiled-')]:
                pathlib.Path(weights).write_bytes(saved)
                one(Variant('pytorch', form), options, '--check', weights)
                with np.load(weights) as arrays:
                    found = [arrays[name] for name in arrays.files]
                errors = [float(np.abs(a - b).max() / np.abs(b).max()) for a, b in zip(found, expected)]
                print(f'MXNet {backend}, PyTorch {form}: relative difference of the logits '
                      f'{errors[0]:.1e} (inference), {errors[1]:.1e} (training)', flush=True)
                if not max(errors) < TOLERANCE:
                    raise SystemExit(f'more than {TOLERANCE:g}')


def report(results: List[Row], storage: Dict[str, int]) -> None:
    """Medians, spreads, ratios and peaks."""
    rates: Dict[Variant, Dict[int, float]] = {}
    peaks: Dict[Variant, int] = {}
    for row in results:
        variant = Variant(*(row[key] for key in Variant._fields))
        rates.setdefault(variant, {})[row['round']] = row['images_per_second']
        peaks[variant] = max(peaks.get(variant, 0), row['peak_resident_bytes'])
    ours = [variant for variant in rates if variant.framework == 'mxnet' and variant.form != 'none']
    for variant in sorted(rates, key=lambda variant: -statistics.median(rates[variant].values())):
        values = rates[variant]
        ratios = ', '.join(
            f'{statistics.median(rates[backend][i] / values[i] for i in values if i in rates[backend]):.2f}'
            f' {backend.form} / it' for backend in ours)
        memory = f'{peaks[variant] / 1e6:,.0f} MB resident'
        if variant.framework == 'mxnet':
            memory += f', {storage[variant.form] / 1e6:,.0f} MB storage'
        print(f'{str(variant):46} {statistics.median(values.values()):6.2f} images/s ({min(values.values()):.2f} to '
              f'{max(values.values()):.2f})  {memory}  {ratios}')


if __name__ == '__main__':
    main()
