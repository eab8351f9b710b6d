"""Images/s of training and inference, measured: each combination in a process of its own.

A process has one number format and one number of threads (see precision.py, compat.py), so one cannot measure two.
"""
import itertools
import pathlib
import statistics
import time
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import numpy as np

from gluon_aa import compat, files, isolation, machine
from gluon_aa.errors import FailedError
from gluon_aa.training.config import TrainConfig, from_values, load

#: Of the circumstances, what is told with the figures.
_NOTED = ('devices', 'threads', 'attention_backend', 'tile', 'memory_mode')

PHASES = ('training', 'inference')

Row = Dict[str, Any]


class Protocol(NamedTuple):
    """How a combination is measured: `repeats` times `steps` steps on one batch, after `warm_up` steps."""

    warm_up: int = 3
    steps: int = 5
    repeats: int = 5
    phases: Tuple[str, ...] = PHASES
    time_limit: float = 1800.0  # seconds a combination


def combinations(nets: Sequence[str], batch_sizes: Sequence[int], dtypes: Sequence[str], hybridize: Sequence[bool],
                 devices: Sequence[Row], input_size: Optional[str] = None) -> List[TrainConfig]:
    """Every combination as a configuration; `devices` are {'cpus': n} or {'gpus': ids}.

    Raises:
        UsageError: a value that no configuration can have.
    """
    return [load(None, {'net': net, 'batch_size': batch_size, 'dtype': dtype, 'hybridize': compiled,
                        'dataset': 'synthetic', 'optimizer': 'sgd', 'learning_rate': 1e-3, 'input_size': input_size,
                        **place})
            for place, net, dtype, compiled, batch_size in itertools.product(
                devices, nets, dtypes, hybridize, batch_sizes)]


def measure_all(configs: Sequence[TrainConfig], protocol: Protocol) -> Iterator[Row]:
    """A row for each phase of each configuration, as they come; one that fails has `error` in place of its figures."""
    for config in configs:
        about = {'net': config.net, 'batch_size': config.batch_size, 'dtype': config.dtype,
                 'hybridized': config.hybridize, 'source': 'measured'}
        try:
            found = isolation.call('gluon_aa.training.throughput:answer',
                                   {'config': config.values(), 'protocol': protocol._asdict()}, protocol.time_limit)
        except FailedError as error:
            places = [f'gpu({gpu})' for gpu in config.gpus] or [f'cpu({cpu})' for cpu in range(config.cpus)]
            yield {**about, 'devices': places, 'phase': None, 'error': str(error)}
            continue
        for row in found:
            yield {**about, **row}


def answer(config: Row, protocol: Row) -> List[Row]:
    """`measure` as its own process is asked for it."""
    loaded = from_values(config)
    if not loaded.gpus:
        compat.share_cores(loaded.cpus)
    return measure(loaded, Protocol(**protocol))


def measure(config: TrainConfig, protocol: Protocol) -> List[Row]:
    """The rows of one configuration, in this process. A step is the trainer's own, from a batch in host memory."""
    from gluon_aa.compat import mx
    from gluon_aa.training.assembly import build_engine
    from gluon_aa.training.assembly import circumstances
    from gluon_aa.training.loop import load_data
    dataset = load_data(config)
    engine = build_engine(config, dataset)
    chosen = np.arange(config.batch_size) % len(dataset.train)
    batch = dataset.train.images[chosen], dataset.train.labels[chosen]

    def train(steps: int) -> None:
        for _ in range(steps):
            engine.train_step(*batch, config.learning_rate)
        mx.nd.waitall()

    def infer(steps: int) -> None:
        engine.count_correct(itertools.repeat(batch, steps))

    rows, found = [], circumstances(engine)
    for phase in protocol.phases:
        rates = _rates({'training': train, 'inference': infer}[phase], protocol, config.batch_size)
        rows.append({'phase': phase, **{name: found[name] for name in _NOTED},
                     'images_per_second': statistics.median(rates),
                     'slowest': min(rates), 'fastest': max(rates), 'repeats': rates})
    return rows


def _rates(run: Callable[[int], None], protocol: Protocol, batch_size: int) -> List[float]:
    """Images/s of each repeat."""
    run(protocol.warm_up)
    rates = []
    for _ in range(protocol.repeats):
        start = time.perf_counter()
        run(protocol.steps)
        rates.append(protocol.steps * batch_size / (time.perf_counter() - start))
    return rates


def conditions(protocol: Protocol) -> Row:
    """What the figures depend on beside the combinations."""
    return {'cpu': machine.cpu_model(), 'physical_cores': machine.physical_cores(),
            'protocol': {key: value for key, value in protocol._asdict().items() if key != 'time_limit'}}


def label(row: Row) -> str:
    """The combination of a row in a few words."""
    mode = '' if row['hybridized'] else ', eager'
    places = f'{len(row["devices"])} x {row["devices"][0][:3]}'
    return f'{row["net"]}, batch {row["batch_size"]}, {row["dtype"]}{mode}, {places}'


def draw(rows: Sequence[Row], path: pathlib.Path, title: str) -> None:
    """A PNG: a bar for each measured row, its median, with a line from the slowest to the fastest repeat."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    phases = [phase for phase in PHASES if any(row['phase'] == phase for row in rows)]
    figure = Figure(figsize=(6 * max(1, len(phases)) + 2, 1.6 + 0.4 * len(rows) / max(1, len(phases))),
                    layout='constrained')
    FigureCanvasAgg(figure)
    for axes, phase in zip(figure.subplots(1, max(1, len(phases)), squeeze=False)[0], phases):
        shown = [row for row in rows if row['phase'] == phase][::-1]  # the first on top
        middle = [row['images_per_second'] for row in shown]
        spread = [[value - row['slowest'] for value, row in zip(middle, shown)],
                  [row['fastest'] - value for value, row in zip(middle, shown)]]
        bars = axes.barh([label(row) for row in shown], middle, xerr=spread, color='tab:blue', capsize=3)
        axes.bar_label(bars, [f'{value:,.0f}' for value in middle], padding=6)
        axes.margins(x=0.25)
        axes.set(xlabel='images/s', title=phase.capitalize())
        axes.grid(axis='x', alpha=0.3)
        axes.set_axisbelow(True)
    figure.suptitle(title, wrap=True)
    with files.replacing(path) as temporary:
        figure.savefig(str(temporary), dpi=120, format='png')
