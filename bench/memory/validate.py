"""Modelled and extrapolated peaks of training steps against measured ones, over cells drawn by a seeded generator.

    python bench/memory/validate.py --csv bench/results/memory.csv
    python bench/memory/validate.py --csv bench/results/memory-bfloat16.csv --dtype bfloat16 --cells 20 --emulate
    python bench/memory/validate.py --cells 3 --largest 100 --csv cells.csv

Measured is the peak of MXNet's storage profiler over three whole steps, from a batch in host memory to the updated
weights, in a process of its own. Cells that would be larger than --largest megabytes by the model, or whose step would
take more than --gigaflops, are drawn again. A file that is there already is gone on with.

--emulate lets a CPU without instructions for bfloat16 compute in it all the same, slowly, which AVX-512 can.
"""
import argparse
import csv
import pathlib
import random
import statistics
from typing import Any, Dict, Iterator, List

from gluon_aa import isolation, machine
from gluon_aa.errors import FailedError
from gluon_aa.memory import cells
from gluon_aa.memory.devices import DEVICES
from gluon_aa.models import get_model
from gluon_aa.models.summary import summarize
from gluon_aa.training.config import from_values, parse_size

#: Network -> its eligible convolutions, which `last:K` counts.
NETS = {'aa_wrn10_2': 3, 'aa_wrn16_2': 6, 'aa_wrn16_4': 6, 'aa_wrn28_4': 12, 'aa_wrn28_10': 12,
        'aa_resnet18': 8, 'aa_resnet34': 16, 'aa_resnet50': 16}
BATCH_SIZES = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20, 24, 28, 32)
SIZES = ('32x32', '32x32', '24x40')
TILES = (64, 128, 256, 1024)
CLASSES = 10

COLUMNS = ('net', 'placement', 'relative', 'input_size', 'attention_backend', 'tile', 'memory_mode', 'recompute',
           'dtype', 'optimizer', 'batch_size', 'measured', 'modelled', 'extrapolated', 'resident')

Row = Dict[str, Any]


def draw(generator: random.Random, dtype: str) -> Row:
    """A cell: keys of a configuration."""
    net = generator.choice(list(NETS))
    mode = generator.choice(('speed', 'recompute'))
    backend = generator.choice(('reference', 'folded', 'tiled', 'native'))
    return {'net': net, 'placement': f'last:{generator.randint(0, NETS[net])}', 'relative': generator.random() < 0.75,
            'input_size': generator.choice(SIZES), 'attention_backend': backend,
            'tile': generator.choice(TILES) if backend == 'tiled' else None, 'memory_mode': mode,
            'recompute': generator.choice(('attention', 'blocks')) if mode == 'recompute' else 'attention',
            'dtype': dtype, 'optimizer': generator.choice(('nag', 'nag', 'sgd', 'adam')),
            'batch_size': generator.choice(BATCH_SIZES)}


def shape(cell: Row) -> List[int]:
    return [3, *parse_size(cell['input_size'])]


def gigaflops(cell: Row) -> float:
    """Of a step, without what it computes again."""
    size = parse_size(cell['input_size'])
    net = get_model(cell['net'], CLASSES, input_size=size, placement=cell['placement'], attention_backend='folded')
    return 3e-9 * cell['batch_size'] * summarize(net, size)['flops']


def model(cell: Row, options: Any) -> int:
    values = from_values(cell).values()
    arguments = {'config': values, 'classes': CLASSES, 'image_shape': shape(cell)}
    if options.emulate:
        return emulated('modelled_here', {**arguments, 'device': list(DEVICES['cpu']), 'inference': False,
                                          'batch_sizes': [cell['batch_size']]})[0]['total_bytes']
    return cells.modelled(device=DEVICES['cpu'], batch_sizes=[cell['batch_size']], time_limit=600,
                          **arguments)[0]['total_bytes']


def check(cell: Row, options: Any) -> Row:
    """The cell with its figures, in bytes."""
    values = from_values(cell).values()
    arguments = {'config': values, 'classes': CLASSES, 'image_shape': shape(cell)}
    if options.emulate:
        measured = emulated('measured_here', {**arguments, 'inference': False, 'budget': None})
        return {**cell, 'measured': measured['storage_bytes'], 'resident': measured['resident_bytes'],
                'modelled': model(cell, options)}
    measured = cells.measured(time_limit=3600, **arguments)
    estimated = cells.extrapolated(device=DEVICES['cpu'], batch_sizes=[cell['batch_size']], time_limit=3600,
                                   **arguments)
    return {**cell, 'measured': measured['storage_bytes'], 'resident': measured['resident_bytes'],
            'modelled': model(cell, options), 'extrapolated': estimated[0]['total_bytes']}


def emulated(function: str, arguments: Row) -> Any:
    """A function of cells.py in a process that takes this CPU for one with bfloat16."""
    return isolation.call('validate:emulated_here', {'function': function, 'arguments': arguments}, 3600)


def emulated_here(function: str, arguments: Row) -> Any:
    from gluon_aa.training import precision
    precision.BFLOAT16_INSTRUCTIONS = ('avx512f',)
    return getattr(cells, function)(**arguments)


def drawn(options: Any) -> Iterator[Row]:
    """The cells, those included that are done."""
    generator, count = random.Random(options.seed), 0
    while count < options.cells:
        cell = draw(generator, options.dtype)
        if gigaflops(cell) > options.gigaflops:
            continue
        try:
            if model(cell, options) > 1e6 * options.largest:
                continue
        except FailedError as error:
            print(f'not modelled: {cell}: {error}', flush=True)
            raise
        count += 1
        yield cell


def report(rows: List[Row], column: str) -> str:
    """Errors over the measured peak: above 0 is too much."""
    errors = [100 * (int(row[column]) / int(row['measured']) - 1) for row in rows if row.get(column)]
    if not errors:
        return f'{column}: none'
    absolute = sorted(map(abs, errors))
    too_low = [sum(error < -limit for error in errors) for limit in (1, 2)]
    return (f'{column}: {len(errors)} cells, absolute error median {statistics.median(absolute):.2f} %, '
            f'worst {absolute[-1]:.2f} %, lowest {min(errors):+.2f} %, highest {max(errors):+.2f} %; too low by more '
            f'than 1 %: {too_low[0]}, than 2 %: {too_low[1]}')


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--csv', type=pathlib.Path, required=True)
    parser.add_argument('--seed', type=int, default=2026)
    parser.add_argument('--cells', type=int, default=72)
    parser.add_argument('--largest', type=float, default=4000, help='megabytes')
    parser.add_argument('--gigaflops', type=float, default=250)
    parser.add_argument('--dtype', default='float32', choices=('float32', 'bfloat16'))
    parser.add_argument('--emulate', action='store_true')
    options = parser.parse_args()
    done = list(csv.DictReader(options.csv.open())) if options.csv.exists() else []
    with options.csv.open('a', newline='') as file:
        writer = csv.DictWriter(file, COLUMNS)
        if not done:
            writer.writeheader()
        for number, cell in enumerate(drawn(options)):
            if number < len(done):
                continue
            row = check(cell, options)
            writer.writerow(row)
            file.flush()
            done.append(row)
            print(f'{number + 1}/{options.cells} ' + ', '.join(
                f'{key} {1e-6 * row[key]:,.1f}' if key in COLUMNS[-4:] else f'{row[key]}' for key in COLUMNS
                if row.get(key) is not None), flush=True)
    print(f'{machine.cpu_model()}, seed {options.seed}')
    for column in ('extrapolated', 'modelled'):
        print(report(done, column))


if __name__ == '__main__':
    main()
