"""Two CPU devices against one: the largest difference of weights and losses after some steps, batch norm frozen.

    python bench/devices.py --net wrn10_2
    python bench/devices.py --net resnet34 --learning-rate 1e-5

The same total batch, the same seeds; the last batch is uneven. Batch norm is frozen (running statistics, settled
beforehand), as each device normalises its own part of a batch otherwise. The control is one device whose weights begin
with relative errors of float32's rounding: what the network makes of those, it makes of another order of summation too.
"""
import argparse
from typing import Any, Dict, List, Tuple

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.data import load_dataset
from gluon_aa.data.pipeline import TrainingBatches
from gluon_aa.models import get_model
from gluon_aa.training.config import load
from gluon_aa.training.engine import HybridizedEngine

Weights = Dict[str, np.ndarray]


def train(cpus: int, options: Any, error: float = 0.0) -> Tuple[List[float], Weights, Weights]:
    """Losses, weights before and weights after."""
    data = load_dataset('synthetic')
    config = load(None, {'net': options.net, 'cpus': cpus, 'kvstore': options.kvstore, 'optimizer': 'nag',
                         'weight_decay': 5e-4})
    engine = HybridizedEngine(get_model(options.net), data.mean, data.std, (3, 32, 32), config,
                              [mx.cpu(index) for index in range(cpus)])
    batches = list(TrainingBatches(data.train, options.batch_size, 0, crop_padding=4, flip=True).epoch(1))
    freeze(engine, batches)
    for parameter in engine._trainable().values():
        noise = 1 + error * mx.nd.random.normal(shape=parameter.shape)
        parameter.set_data(parameter.data(engine.devices[0]) * noise)
    before = weights(engine)
    losses = []
    for number, (images, labels) in enumerate(batches[:options.steps]):
        odd = len(labels) - (number == options.steps - 1)
        losses.append(engine.train_step(images[:odd], labels[:odd], options.learning_rate).read()[0] / odd)
    return losses, before, weights(engine)


def freeze(engine: HybridizedEngine, batches: List[Tuple[np.ndarray, np.ndarray]]) -> None:
    for images, labels in batches[:60]:  # of the initial 0 and 1, momentum 0.9 leaves 0.2 %
        for device in engine.devices:
            with mx.autograd.record():
                loss, _ = engine.classifier(mx.nd.array(images, ctx=device, dtype='uint8'),
                                            mx.nd.array(labels, ctx=device, dtype='int32'))
            loss.backward()  # which is what updates running statistics
    mx.nd.waitall()
    engine.net.apply(lambda block: isinstance(block, mx.gluon.nn.BatchNorm) and block._kwargs.update(
        use_global_stats=True))
    engine.classifier.hybridize(static_alloc=True, static_shape=True)


def weights(engine: HybridizedEngine) -> Dict[str, np.ndarray]:
    mx.nd.waitall()
    return {name: parameter.data(engine.devices[-1]).asnumpy()
            for name, parameter in engine.net._collect_params_with_prefix().items() if parameter.grad_req != 'null'}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--net', default='wrn10_2')
    parser.add_argument('--batch-size', type=int, default=64)
    parser.add_argument('--steps', type=int, default=10)
    parser.add_argument('--learning-rate', type=float, default=1e-3, help='a high one magnifies rounding')
    parser.add_argument('--cpus', type=int, default=2)
    parser.add_argument('--kvstore', choices=('device', 'local'), default='device')
    options = parser.parse_args()
    losses, before, one = train(1, options)
    moved = max(float(np.abs(one[name] - before[name]).max()) for name in one)
    largest = max(float(np.abs(value).max()) for value in one.values())
    print(f'{options.net}, {options.steps} steps of {options.batch_size}; losses {losses[0]:.4f} to {losses[-1]:.4f}; '
          f'weights up to {largest:.2f}, moved by up to {moved:.1e}')
    for title, (other_losses, _, other) in (
            (f'{options.cpus} devices through {options.kvstore}', train(options.cpus, options)),
            ('control: one device, rounded otherwise', train(1, options, error=2.0 ** -24))):
        difference = max(float(np.abs(one[name] - other[name]).max()) for name in one)
        loss = max(abs(a - b) / abs(a) for a, b in zip(losses, other_losses))
        print(f'{title}: largest difference of weights {difference:.1e}, of losses {loss:.1e} (relative)')


if __name__ == '__main__':
    main()
