"""MXNet's optimizers, and Nesterov momentum whose weight decay is right."""
import os
from typing import Any

from gluon_aa.compat import mx
from gluon_aa.training.config import TrainConfig


@mx.optimizer.register
class Nesterov(mx.optimizer.NAG):
    """Nesterov's accelerated gradient as MXNet's NAG has it, with the decay of the weight before the update.

    MXNet 1.9.1's `nag_mom_update` writes the weight first and then reads it for the momentum's decay. In place that is
    the new weight; but where oneDNN holds the weight in its own layout, the operator works on a copy and reads the
    old one. Which of the two depends on how far the engine has come, so the same training did not repeat. Can go
    when tests/training/test_engine.py passes with mx.optimizer.NAG.
    """

    def _update_impl(self, index: Any, weight: Any, grad: Any, state: Any, multi_precision: bool = False) -> None:
        decay = self._get_wd(index)
        if multi_precision or state is None or not decay:
            super()._update_impl(index, weight, grad, state, multi_precision)
            return
        self._update_count(index)
        # the operator rescales the gradient, so the decay's part is divided beforehand
        decayed = grad + (decay / self.rescale_grad) * weight
        mx.nd.nag_mom_update(weight, decayed, state, out=weight, lr=self._get_lr(index), wd=0.0, momentum=self.momentum,
                             rescale_grad=self.rescale_grad)


def make_optimizer(config: TrainConfig) -> Any:
    """The optimizer that `config` asks for; its rescaling is the trainer's to set."""
    options = {'learning_rate': config.learning_rate, 'wd': config.weight_decay}
    if config.optimizer != 'adam':
        options['momentum'] = config.momentum
    optimizer = mx.optimizer.create('nesterov' if config.optimizer == 'nag' else config.optimizer, **options)
    if not config.gpus and 'MXNET_OPTIMIZER_AGGREGATION_SIZE' not in os.environ:
        # on CPUs the operator that updates several weights at once is slower than a call for each
        optimizer.aggregate_num = min(optimizer.aggregate_num, 1)
    return optimizer
