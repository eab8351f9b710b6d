"""The attention operator in gluon-aa's backends and in PyTorch, in one run, the same threads, turn by turn.

    python -m venv torch && torch/bin/pip install torch==2.13.0 numpy
    .venv/bin/python bench/attention/compare.py --pytorch torch/bin/python --json bench/results/attention.json

PyTorch is given its best chance: every form in pytorch_forms.py, eager and through torch.compile, on plain and on
channels_last maps, with the C library's allocator as it comes (`stock`) and made to keep freed memory (`kept`; see
bench/allocators.py), which saves PyTorch up to two thirds of its time here; gluon-aa has it as it comes. Each is
checked against the NumPy float64 oracle. PyTorch's best is named for both allocators.

First all variants of PyTorch run once, one by one (`qualifying`). The fastest of each pass, and the plain forms, then
take turns with gluon-aa's backends: in every round each has a turn, and what else the machine does meets all of them.
Ratios are medians of the rounds' ratios.
"""
import argparse
import json
import os
import pathlib
import queue
import statistics
import subprocess
import sys
import threading
from typing import Any, Dict, List, NamedTuple, Sequence

from gluon_aa import machine
from gluon_aa.attention import BACKENDS, measuring
from gluon_aa.training.config import parse_size

HERE = pathlib.Path(__file__).parent
sys.path.append(str(HERE.parent))
from allocators import ALLOCATORS  # noqa: E402

PASSES = ('forward', 'forward+backward')

#: In the final whatever qualifying says: the forms that issue and paper name, as a user would write them.
ALWAYS = ('pad-and-reshape', 'sdpa-bias', 'sdpa-folded-flash')

Row = Dict[str, Any]


class Failed(Exception):
    """A variant does not run."""


class Variant(NamedTuple):
    """What takes turns."""

    framework: str
    form: str
    layout: str = 'plain'
    allocator: str = 'stock'

    def __str__(self) -> str:
        return f'{self.framework} {self.form}' + (
            f' ({self.layout}, {self.allocator})' if self.framework == 'pytorch' else '')


class Worker:
    """A variant's process."""

    def __init__(self, variant: Variant, sizes: Row, options: Any) -> None:
        python = options.pytorch if variant.framework == 'pytorch' else sys.executable
        command = [python, str(HERE / f'{variant.framework}_attention.py'), '--form', variant.form, '--layout',
                   variant.layout, '--threads', str(options.threads), '--sizes', json.dumps(sizes)]
        environment = {**os.environ, 'OMP_NUM_THREADS': str(options.threads), **ALLOCATORS[variant.allocator]}
        self.process = subprocess.Popen(command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.PIPE, universal_newlines=True)
        self.limit = options.time_limit
        self.lines: 'queue.Queue[str]' = queue.Queue()
        self.complaints: List[str] = []
        for read in (self._read_answers, self._read_complaints):
            threading.Thread(target=read, daemon=True).start()
        try:
            self.facts = self._answer()
        except Failed:
            self.close()
            raise

    def _read_answers(self) -> None:
        for line in self.process.stdout:
            self.lines.put(line)
        self.lines.put('')

    def _read_complaints(self) -> None:
        for line in self.process.stderr:
            if line.strip():
                self.complaints.append(line.strip())

    def _answer(self) -> Row:
        while True:
            try:
                line = self.lines.get(timeout=self.limit)
            except queue.Empty:
                raise Failed(f'no answer in {self.limit:g} s') from None
            if not line:
                code = self.process.wait()
                errors = [text for text in self.complaints if 'Error' in text or 'oracle' in text] or self.complaints
                raise Failed(f'ended with code {code}: {(errors or ["it said nothing"])[-1][:300]}')
            if line.startswith('{'):
                return dict(json.loads(line))

    def run(self, pass_: str, warm_up: int, repeats: int) -> List[float]:
        """Seconds of each repeat."""
        try:
            self.process.stdin.write(json.dumps({'pass': pass_, 'warm_up': warm_up, 'repeats': repeats}) + '\n')
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # the answer says why
        return list(self._answer()['seconds'])

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


def main() -> None:
    options = _options()
    found = []
    for case in measuring.cases(options.map_size, options.batch_size, options.value_channels, ['reference'],
                                num_heads=options.num_heads, key_channels=options.key_channels, relative=True):
        sizes = {key: getattr(case, key) for key in ('height', 'width', 'batch_size', 'num_heads', 'key_channels',
                                                     'value_channels')}
        print(f'\n{measuring.size_label(sizes)}, {sizes["value_channels"]} value channels', flush=True)
        qualifying = qualify(variants(options), sizes, options)
        rounds = final(finalists(qualifying, options), sizes, options)
        found.append({**sizes, 'flops': {name: case.flops(name) for name in PASSES}, 'qualifying': qualifying,
                      'rounds': rounds, 'summary': report(rounds, case)})
        if options.json:
            about = {'cpu': machine.cpu_model(), 'threads': options.threads, 'warm_up': options.warm_up,
                     'repeats': options.repeats, 'source': 'measured'}
            options.json.write_text(json.dumps({**about, 'sizes': found}, indent=1) + '\n')


def _options() -> Any:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pytorch', required=True, help="Python of PyTorch's environment")
    parser.add_argument('--attention-backend', nargs='+', default=list(BACKENDS))
    parser.add_argument('--forms', nargs='*', help='of pytorch_forms.py; all by default')
    parser.add_argument('--allocators', nargs='+', choices=tuple(ALLOCATORS), default=list(ALLOCATORS))
    parser.add_argument('--map-size', nargs='*', type=parse_size, default=[], help="HxW; aa_wrn28_10's by default")
    parser.add_argument('--batch-size', nargs='*', type=int, default=[])
    parser.add_argument('--value-channels', nargs='*', type=int, default=[])
    parser.add_argument('--num-heads', type=int, default=8)
    parser.add_argument('--key-channels', type=int, default=160)
    parser.add_argument('--threads', type=int, default=2)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--warm-up', type=int, default=2, help='passes before the clock starts, in every turn')
    parser.add_argument('--repeats', type=int, default=3, help='passes a turn; their median counts')
    parser.add_argument('--finalists', type=int, default=3, help='fastest variants of PyTorch, for each pass')
    parser.add_argument('--time-limit', type=float, default=300.0, help='seconds, for starting with compilation too')
    parser.add_argument('--json', type=pathlib.Path, help='where to write the figures')
    return parser.parse_args()


def variants(options: Any) -> List[Variant]:
    """Every variant of PyTorch; compiled ones, which take long to start, with the better allocator only."""
    names = options.forms
    if names is None:
        code = 'import json, pytorch_forms; print(json.dumps(list(pytorch_forms.FORMS)))'
        names = json.loads(subprocess.run([options.pytorch, '-c', code], cwd=str(HERE), stdout=subprocess.PIPE,
                                          universal_newlines=True, check=True).stdout.splitlines()[-1])
    slow = [name for name in names if name.startswith('compiled-') or name == 'flex']
    return [Variant('pytorch', name, layout, allocator) for name in names for layout in ('plain', 'channels_last')
            for allocator in (options.allocators[-1:] if name in slow else options.allocators)]


def qualify(chosen: Sequence[Variant], sizes: Row, options: Any) -> List[Row]:
    """The seconds of each variant by itself, or why there are none."""
    rows = []
    for variant in chosen:
        row: Row = {**variant._asdict(), 'seconds': {}}
        rows.append(row)
        try:
            worker = Worker(variant, sizes, options)
        except Failed as error:
            row['failed'] = str(error)
            print(f'  qualifying {variant}: {error}', flush=True)
            continue
        try:
            for pass_ in worker.facts['passes']:
                row['seconds'][pass_] = statistics.median(worker.run(pass_, options.warm_up, options.repeats))
        except Failed as error:
            row['failed'] = str(error)
        finally:
            worker.close()
        row['error'] = worker.facts['error']
        figures = ', '.join(f'{pass_} {1e3 * seconds:.1f} ms' for pass_, seconds in row['seconds'].items())
        print(f'  qualifying {variant}: {figures} {row.get("failed", "")}', flush=True)
    return rows


def finalists(qualifying: Sequence[Row], options: Any) -> List[Variant]:
    """gluon-aa's backends, PyTorch's fastest of each pass, and the better layout and allocator of ALWAYS."""
    chosen = [Variant('mxnet', backend) for backend in options.attention_backend]
    for pass_ in PASSES:
        rows = sorted((row for row in qualifying if pass_ in row['seconds']), key=lambda row: row['seconds'][pass_])
        picked = rows[:options.finalists]
        for form in ALWAYS:
            for allocator in ALLOCATORS:
                picked += [row for row in rows if (row['form'], row['allocator']) == (form, allocator)][:1]
        chosen += [Variant(*(row[key] for key in Variant._fields)) for row in picked]
    return list(dict.fromkeys(chosen))


def final(chosen: Sequence[Variant], sizes: Row, options: Any) -> List[Row]:
    """Median seconds of each turn, round by round."""
    workers = {}
    try:
        for variant in chosen:
            try:
                workers[variant] = Worker(variant, sizes, options)
            except Failed as error:
                print(f'  {variant} failed: {error}', flush=True)
        rows = []
        for number in range(options.rounds):
            for pass_ in PASSES:
                for variant, worker in workers.items():
                    if pass_ in worker.facts['passes']:
                        seconds = worker.run(pass_, options.warm_up, options.repeats)
                        rows.append({**variant._asdict(), 'round': number, 'pass': pass_, 'repeats': seconds,
                                     'seconds': statistics.median(seconds)})
            print(f'  round {number + 1} of {options.rounds} done', flush=True)
        return rows
    finally:
        for worker in workers.values():
            worker.close()


def report(rounds: Sequence[Row], case: measuring.Case) -> List[Row]:
    """Medians, spreads and ratios, printed and returned."""
    rows = []
    for pass_ in PASSES:
        turns: Dict[Variant, List[float]] = {}
        for row in rounds:
            if row['pass'] == pass_:
                turns.setdefault(Variant(*(row[key] for key in Variant._fields)), []).append(row['seconds'])
        ours = [variant for variant in turns if variant.framework == 'mxnet']
        theirs = [variant for variant in turns if variant.framework == 'pytorch']
        best = {allocator: min((variant for variant in theirs if variant.allocator == allocator), default=None,
                               key=lambda variant: statistics.median(turns[variant])) for allocator in ALLOCATORS}
        for variant in sorted(turns, key=lambda variant: statistics.median(turns[variant])):
            seconds = turns[variant]
            ratios = {backend.form: statistics.median(a / b for a, b in zip(seconds, turns[backend]))
                      for backend in ours}
            row = {**variant._asdict(), 'pass': pass_, 'seconds': statistics.median(seconds), 'fastest': min(seconds),
                   'slowest': max(seconds), 'flops_per_second': case.flops(pass_) / statistics.median(seconds),
                   'best_of_pytorch': variant in best.values(), 'over': ratios}
            rows.append(row)
            print(f'  {pass_:16} {str(variant):58} {1e3 * row["seconds"]:8.1f} ms ({1e3 * row["fastest"]:.1f} to '
                  f'{1e3 * row["slowest"]:.1f}) {row["flops_per_second"] / 1e9:6.1f} GFLOP/s  '
                  + ', '.join(f'{value:.2f} x {name}' for name, value in ratios.items())
                  + (f"  <- PyTorch's best, {variant.allocator}" if variant in best.values() else ''))
    return rows


if __name__ == '__main__':
    main()
