"""images/s of one network's bare training loop in gluon-aa (MXNet), PyTorch and TensorFlow, in one run.

    python -m venv torch && torch/bin/pip install torch==2.13.0 numpy
    python -m venv tensorflow && tensorflow/bin/pip install tensorflow-cpu==2.15.1
    .venv/bin/python bench/frameworks/compare.py --pytorch torch/bin/python --tensorflow tensorflow/bin/python

Each round starts every loop once, in turn, in its own environment and process: what else the machine does meets all of
them. The ratios are medians of the rounds' ratios. ResNet-34 of the replication (7x7 stem at stride 1), 32x32 images,
SGD with momentum; every loop checks that it has 21,289,802 parameters.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
from typing import Any, Dict, List

from gluon_aa import machine

HERE = pathlib.Path(__file__).parent


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pytorch', required=True, help="Python of PyTorch's environment")
    parser.add_argument('--tensorflow', required=True, help="Python of TensorFlow's environment")
    parser.add_argument('--dtypes', nargs='+', default=['float32', 'bfloat16'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--warm-up', type=int, default=8, help='steps before the clock starts')
    parser.add_argument('--steps', type=int, default=8, help='steps a round')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--json', type=pathlib.Path, help='where to write the figures')
    options = parser.parse_args()
    pythons = {'mxnet': sys.executable, 'pytorch': options.pytorch, 'tensorflow': options.tensorflow}
    results: List[Dict[str, Any]] = []
    for dtype in options.dtypes:
        for number in range(options.rounds):
            for name, python in pythons.items():
                results.append({'loop': name, 'round': number, **one(name, python, dtype, options)})
                print(f'{dtype} round {number + 1}: {name} {results[-1]["images_per_second"]:.1f}', flush=True)
        report([result for result in results if result['dtype'] == dtype])
    if options.json:
        about = {'rounds': options.rounds, 'warm_up': options.warm_up, 'steps': options.steps,
                 'threads': options.threads, 'cpu': machine.cpu_model()}
        options.json.write_text(json.dumps({**about, 'results': results}, indent=1) + '\n')


def one(name: str, python: str, dtype: str, options: Any) -> Dict[str, Any]:
    """The figures of one loop, in a process of its own."""
    command = [python, str(HERE / f'{name}_loop.py'), '--dtype', dtype, '--steps', str(options.steps),
               '--warm-up', str(options.warm_up),
               '--batch-size', str(options.batch_size), '--threads', str(options.threads)]
    environment = {**os.environ, 'TF_CPP_MIN_LOG_LEVEL': '3', 'OMP_NUM_THREADS': str(options.threads)}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                          universal_newlines=True, check=False)
    if done.returncode:
        raise SystemExit(f'{" ".join(command)} ended with code {done.returncode}:\n{done.stderr}')
    return dict(json.loads(done.stdout.splitlines()[-1]))


def report(results: List[Dict[str, Any]]) -> None:
    """Medians, spreads and ratios of one dtype."""
    rates = {name: [result['images_per_second'] for result in results if result['loop'] == name]
             for name in ('mxnet', 'pytorch', 'tensorflow')}
    for name, values in rates.items():
        title = next(result['framework'] for result in results if result['loop'] == name)
        ratio = statistics.median(ours / theirs for ours, theirs in zip(rates['mxnet'], values))
        print(f'{results[0]["dtype"]}  {title:18}  {statistics.median(values):7.1f} images/s '
              f'({min(values):.1f} to {max(values):.1f})   gluon-aa / it: {ratio:.2f}')


if __name__ == '__main__':
    main()
