"""The arithmetic of a training step, in FLOPs (2 x multiply-adds): what time is compared by where nothing is run."""
from typing import NamedTuple, Optional, Sequence

from gluon_aa.attention.cost import BACKWARD_OVER_FORWARD, attention_flops
from gluon_aa.memory.devices import Device
from gluon_aa.models import get_model
from gluon_aa.models.registry import GLUONCV_PREFIX
from gluon_aa.models.summary import summarize
from gluon_aa.training.config import TrainConfig


class Work(NamedTuple):
    """FLOPs of one image, forward: of the whole network, and of the products of its attention maps alone."""

    forward: int
    maps: int
    augmented: int  # layers

    def step(self, config: TrainConfig) -> int:
        """FLOPs of one image in a training step: forward, backward, and what `config` computes again.

        Every backend counts the same: the products that the equations need.
        """
        return (1 + BACKWARD_OVER_FORWARD) * self.forward + self._again(config)

    def _again(self, config: TrainConfig) -> int:
        if config.memory_mode != 'recompute':
            return 0
        if config.recompute == 'blocks':
            return self.forward
        return self.maps if config.attention_backend == 'tiled' else 0

    def seconds_at_peak(self, config: TrainConfig, device: Device) -> Optional[float]:
        """What a step would take if each device did nothing but its peak; None where that is not known.

        Attention's maps are float32 in every number format.
        """
        if config.dtype not in device.flops:
            return None
        times = 1 + BACKWARD_OVER_FORWARD
        maps = times * self.maps + (self._again(config) and self.maps)
        share = config.batch_size / (len(config.gpus) or config.cpus)
        return share * ((self.step(config) - maps) / device.flops[config.dtype] + maps / device.flops['float32'])


def work(config: TrainConfig, classes: int, image_shape: Sequence[int]) -> Work:
    """Of the network of `config`, which is built and not initialised."""
    options = config.model_options()
    if not config.net.startswith(GLUONCV_PREFIX):
        options['attention_backend'] = 'folded'  # all count the same, and auto might have to compile one
    size = (image_shape[1], image_shape[2])
    summary = summarize(get_model(config.net, classes, input_size=size, **options), size, image_shape[0])
    attention = [row['attention'] for row in summary['layers'] if row['augmented']]
    maps = sum(attention_flops(**{key: layer[key] for key in (
        'height', 'width', 'key_channels', 'value_channels', 'relative')}) for layer in attention)
    return Work(summary['flops'], maps, len(attention))
