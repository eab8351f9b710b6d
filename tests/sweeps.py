"""Sweeps whose cells' bytes come from a table."""
from gluon_aa.errors import FailedError
from gluon_aa.memory import request, sweep

GIB = 2 ** 30


def ask(**changes):
    """A small sweep on a GPU; `aa_wrn10_1` has three layers to augment."""
    return request.make(**{'net': 'aa_wrn10_1', 'devices': ('p100-16g',), 'batch_sizes': (8, 16, 32), **changes})


def ask_to_measure(**changes):
    return ask(**{'devices': ('cpu',), 'source': 'measured', 'memory_budget': GIB, 'backends': ('folded',), **changes})


def depth_of(config):
    return int(config['placement'].split(':')[1])


class Table:
    """Finds the bytes of a cell as `needs(config, batch size)` tells, and notes what it was asked."""

    def __init__(self, needs):
        self.needs, self.asked = needs, []

    def model(self, config, classes, image_shape, device, batch_sizes, time_limit, inference):
        self.asked.append((depth_of(config), config['attention_backend']))
        return [self.row(config, batch) for batch in batch_sizes]

    def row(self, config, batch):
        count = self.needs(config, batch)
        attention = count // 4 * (depth_of(config) > 0)
        layers = [{'name': 'stage1.block1.conv1', 'kind': 'AttentionAugmentedConv2D', 'parameters': 1000,
                   'activations': count // 8, 'attention': attention},
                  {'name': 'stem', 'kind': 'Conv2D', 'parameters': 500, 'activations': count // 2, 'attention': 0}]
        return {'batch_size': batch, 'bytes': {'parameters': 1500, 'activations': count - attention - 1500,
                                               'attention': attention},
                'total_bytes': count, 'uncertainty_bytes': count // 10, 'layers': layers}

    def measure(self, config, classes, image_shape, time_limit, *, inference=False, budget=None):
        self.asked.append((depth_of(config), config['batch_size']))
        count = self.needs(config, config['batch_size'])
        if budget is not None and count > budget:
            raise FailedError('Failed to allocate CPU Memory')
        return {'storage_bytes': count, 'resident_bytes': count, 'baseline_bytes': 10 ** 8, 'driver_bytes': None}

    @property
    def finders(self):
        return sweep.Finders(self.model, self.model, self.measure)


def run(asked, table, done=(), jobs=1):
    """The cells of a sweep, and those that were recorded."""
    recorded = []
    cells = sweep.run(asked, asked.found_devices(), done, recorded.append, sweep.Limits(60, jobs), table.finders)
    return cells, recorded
