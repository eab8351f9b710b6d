"""One training step and one evaluation, on one device or several."""
import dataclasses
import zlib
from typing import Any, Iterable, List, Sequence, Tuple

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.training.config import TrainConfig
from gluon_aa.training.optimizers import make_optimizer

nn: Any = mx.gluon.nn


class Classifier(nn.HybridBlock):
    """A network with what surrounds it, in one graph: normalisation before, the loss after.

    Args:
        net: images (B, C, H, W) float32 -> logits (B, classes).
        mean, std: (C,) per channel, in the images' units.
        label_smoothing: probability spread evenly over all classes (Szegedy et al. 2015, arXiv 1512.00567, section 7).
    """

    def __init__(self, net: Any, mean: np.ndarray, std: np.ndarray, label_smoothing: float = 0.0,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = net
        self.label_smoothing = label_smoothing
        with self.name_scope():
            self.mean = self.params.get_constant('mean', mean.reshape(1, -1, 1, 1))
            self.std = self.params.get_constant('std', std.reshape(1, -1, 1, 1))

    def hybrid_forward(self, F: Any, images: Any, labels: Any, mean: Any, std: Any) -> Tuple[Any, Any]:
        """Images (B, C, H, W) uint8, labels (B,) -> sum of the losses (1,), number of correct predictions (1,)."""
        x = F.broadcast_div(F.broadcast_sub(F.cast(images, dtype='float32'), mean), std)
        logits = self.net(x)  # (B, classes)
        log_probabilities = F.log_softmax(logits, axis=-1)
        loss = -F.pick(log_probabilities, labels, axis=-1)  # (B,)
        if self.label_smoothing:
            uniform = -F.mean(log_probabilities, axis=-1)  # (B,)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        correct = F.broadcast_equal(F.argmax(logits, axis=-1), F.cast(labels, dtype='float32'))
        return F.sum(loss), F.sum(correct)


@dataclasses.dataclass
class StepResult:
    """What a step computes, not yet waited for: one array a device."""

    losses: List[Any]
    corrects: List[Any]

    def read(self) -> Tuple[float, int]:
        """(sum of the losses, number of correct predictions); waits for the step to finish."""
        return (sum(float(loss.asscalar()) for loss in self.losses),
                sum(int(correct.asscalar()) for correct in self.corrects))


class HybridizedEngine:
    """Gluon's compiled graph (CachedOp) with gradients summed over the devices by kvstore.

    Args:
        net: not initialised.
        mean, std: (C,) per channel.
        image_shape: (C, H, W).
        devices: MXNet contexts; a batch is divided among them.
    """

    def __init__(self, net: Any, mean: np.ndarray, std: np.ndarray, image_shape: Tuple[int, int, int],
                 config: TrainConfig, devices: Sequence[Any]) -> None:
        self.net, self.config, self.devices = net, config, list(devices)
        self.classifier = Classifier(net, mean, std, config.label_smoothing)
        mx.random.seed(config.seed)
        self.classifier.initialize(mx.init.MSRAPrelu('in', 0), ctx=self.devices)
        self._fix_shapes(image_shape)
        if config.hybridize:
            self.classifier.hybridize(static_alloc=True, static_shape=True)
        self._trainer = self._make_trainer()

    def _fix_shapes(self, image_shape: Tuple[int, int, int]) -> None:
        """Run one image through, so that every weight is drawn now, right after seeding."""
        for device in self.devices:
            self.classifier(mx.nd.zeros((1, *image_shape), dtype='uint8', ctx=device),
                            mx.nd.zeros((1,), dtype='int32', ctx=device))

    def _make_trainer(self) -> Any:
        config = self.config
        parameters = self.net.collect_params()
        if not config.decay_norm_and_bias:
            for name, parameter in parameters.items():
                if name.endswith(('gamma', 'beta', 'bias')):
                    parameter.wd_mult = 0.0
        # on the devices, not in kvstore: one way for any number of devices, and the state stays within reach
        return mx.gluon.Trainer(parameters, make_optimizer(config), kvstore=config.kvstore, update_on_kvstore=False)

    def seed_step(self, epoch: int, step: int) -> None:
        """Make the step's random numbers (dropout) depend on (seed, epoch, step) alone."""
        if self.config.dropout:
            mx.random.seed(zlib.crc32(f'{self.config.seed} {epoch} {step}'.encode()) & 0x7fffffff)

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> StepResult:
        """One update from images (B, C, H, W) uint8 and labels (B,) int32; returns without waiting."""
        result = StepResult([], [])
        with mx.autograd.record():
            for part in self._divide(images, labels):
                loss, correct = self.classifier(*part)
                result.losses.append(loss)
                result.corrects.append(correct)
        mx.autograd.backward(result.losses)
        self._trainer.set_learning_rate(learning_rate)
        self._trainer.step(len(labels))  # divides the summed gradients by the batch's size
        return result

    def average_statistics(self) -> None:
        """Give every device the mean of the devices' running statistics, which is what a checkpoint holds."""
        if len(self.devices) > 1:
            mx.nd.waitall()  # running statistics lag behind
            for parameter in self.net.collect_params().values():
                if parameter.grad_req == 'null':
                    parameter.set_data(parameter._reduce())

    def count_correct(self, batches: Iterable[Tuple[np.ndarray, np.ndarray]]) -> int:
        """Number of correct predictions; labels of -1 count as wrong."""
        total = 0
        pending: List[StepResult] = []
        for images, labels in batches:
            outputs = [self.classifier(*part) for part in self._divide(images, labels)]
            pending.append(StepResult([], [correct for _, correct in outputs]))
            if len(pending) > 2:  # keep the engine busy, but not arbitrarily far ahead
                total += pending.pop(0).read()[1]
        return total + sum(result.read()[1] for result in pending)

    def _divide(self, images: np.ndarray, labels: np.ndarray) -> List[Tuple[Any, Any]]:
        parts = zip(np.array_split(images, len(self.devices)), np.array_split(labels, len(self.devices)))
        return [(mx.nd.array(x, ctx=device, dtype='uint8'), mx.nd.array(y, ctx=device, dtype='int32'))
                for (x, y), device in zip(parts, self.devices)]
