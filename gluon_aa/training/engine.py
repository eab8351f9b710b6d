"""One training step and one evaluation, on one device or several: what all engines share, and the hybridized one."""
import contextlib
import dataclasses
import math
import zlib
from typing import Any, ContextManager, Dict, Iterable, Iterator, List, Sequence, Tuple

import numpy as np

from gluon_aa.compat import mx
from gluon_aa.errors import FailedError
from gluon_aa.training import precision
from gluon_aa.training.accumulation import Accumulation
from gluon_aa.training.checkpoint import mean_over_devices
from gluon_aa.training.config import TrainConfig
from gluon_aa.training.optimizers import make_optimizer

nn: Any = mx.gluon.nn

#: Arrays that one call of MXNet's multi_all_finite takes, as in MXNet's own loss scaler.
ARRAYS_A_CALL = 200


class Classifier(nn.HybridBlock):
    """A network with what surrounds it, in one graph: normalisation before, the loss after.

    Args:
        net: images (B, C, H, W) float32 -> logits (B, classes).
        mean, std: what broadcasts against (C, H, W), in the images' units.
        label_smoothing: probability spread evenly over all classes (Szegedy et al. 2015, arXiv 1512.00567, section 7).
    """

    def __init__(self, net: Any, mean: np.ndarray, std: np.ndarray, label_smoothing: float = 0.0,
                 **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.net = net
        self.label_smoothing = label_smoothing
        with self.name_scope():
            self.mean = self.params.get_constant('mean', mean[np.newaxis])
            self.std = self.params.get_constant('std', std[np.newaxis])

    def hybrid_forward(self, F: Any, images: Any, labels: Any, mean: Any, std: Any) -> Tuple[Any, Any]:
        """Images (B, C, H, W) uint8, labels (B,) -> sum of the losses (1,), number of correct predictions (1,)."""
        x = F.broadcast_div(F.broadcast_sub(F.cast(images, dtype='float32'), mean), std)
        logits = F.cast(self.net(x), dtype='float32')  # (B, classes); 16 bits come back from a 16-bit network
        log_probabilities = F.log_softmax(logits, axis=-1)
        loss = -F.pick(log_probabilities, labels, axis=-1)  # (B,)
        if self.label_smoothing:
            uniform = -F.mean(log_probabilities, axis=-1)  # (B,)
            loss = (1 - self.label_smoothing) * loss + self.label_smoothing * uniform
        correct = F.broadcast_equal(F.argmax(logits, axis=-1), F.cast(labels, dtype='float32'))
        return F.sum(loss), F.sum(correct)


@dataclasses.dataclass
class StepResult:
    """What a step computes, not yet waited for: one array a device and micro-batch, and whether the gradient is finite.
    """

    losses: List[Any]
    corrects: List[Any]
    finite: Any = None

    def read(self) -> Tuple[float, int]:
        """(sum of the losses, number of correct predictions); waits for the step to finish.

        The sum is NaN where the gradient is not finite, which the losses need not show: oneDNN's relu makes 0 of NaN.
        """
        loss = sum(float(loss.asscalar()) for loss in self.losses)
        if self.finite is not None and not self.finite.asscalar():
            loss = math.nan
        return loss, sum(int(correct.asscalar()) for correct in self.corrects)


Part = Tuple[Any, Any]  # images and labels on a device


class Engine:
    """A network on its devices, with gradients summed over them by kvstore. Subclasses say how it is run.

    Args:
        net: not initialised.
        mean, std: what broadcasts against (C, H, W).
        image_shape: (C, H, W).
        config: with its automatic choices made.
        devices: MXNet contexts; a batch is divided among them, and each one's share into micro-batches.
    """

    def __init__(self, net: Any, mean: np.ndarray, std: np.ndarray, image_shape: Tuple[int, int, int],
                 config: TrainConfig, devices: Sequence[Any]) -> None:
        self.net, self.config, self.devices = net, config, list(devices)
        self.classifier = Classifier(net, mean, std, config.label_smoothing)
        mx.random.seed(config.seed)
        self._initialize(image_shape)
        if config.dtype == 'bfloat16':
            precision.even_channels(net)
        self._compile()
        self._trainer = self._make_trainer()
        self._accumulation = (Accumulation([*self._trainable().values()], self.devices)
                              if config.accumulate > 1 else None)

    def _compile(self) -> None:
        """Get ready to run, as far as that does not depend on the batch size."""
        raise NotImplementedError

    def _gradients(self, parts: Sequence[Part]) -> Tuple[List[Any], List[Any]]:
        """Leave each device's gradients in its parameters; returns its sum of losses and its correct predictions."""
        raise NotImplementedError

    def _correct(self, part: Part) -> Any:
        """The number of correct predictions, as evaluated: with running statistics and without dropout."""
        raise NotImplementedError

    def _initialize(self, image_shape: Tuple[int, int, int]) -> None:
        """Draw every weight now, right after seeding.

        Shapes that are not known yet are inferred. Running an image through would tell them too, but leave weights in
        oneDNN's layout, of which the first update would make two copies.
        """
        self.classifier.initialize(mx.init.MSRAPrelu('in', 0), ctx=self.devices)
        self.classifier.infer_shape(mx.nd.zeros((1, *image_shape), dtype='uint8'), mx.nd.zeros((1,), dtype='int32'))
        loss, _ = self.classifier(mx.sym.var('images'), mx.sym.var('labels'))
        parameters = self.classifier.collect_params()
        for name in (*loss.list_arguments(), *loss.list_auxiliary_states()):
            if name in parameters.keys():
                parameters[name]._finish_deferred_init()

    def _make_trainer(self) -> Any:
        config = self.config
        # not the running statistics: in its first step a trainer of several devices gives them all the first one's
        parameters = [parameter for parameter in self.net.collect_params().values() if parameter.grad_req != 'null']
        if not config.decay_norm_and_bias:
            for parameter in parameters:
                if parameter.name.endswith(('gamma', 'beta', 'bias')):
                    parameter.wd_mult = 0.0
        # on the devices, not in kvstore: one way for any number of devices, and the state stays within reach
        trainer = mx.gluon.Trainer(parameters, make_optimizer(config), kvstore=config.kvstore, update_on_kvstore=False)
        if config.dtype == 'float16':
            # gradients are checked for overflow after they were summed: the first device's tell of all
            precision.amp().init_trainer(trainer)
        return trainer

    def seed_step(self, epoch: int, step: int) -> None:
        """Make the step's random numbers (dropout) depend on (seed, epoch, step) alone."""
        if self.config.dropout:
            mx.random.seed(zlib.crc32(f'{self.config.seed} {epoch} {step}'.encode()) & 0x7fffffff)

    def train_step(self, images: np.ndarray, labels: np.ndarray, learning_rate: float) -> StepResult:
        """One update from images (B, C, H, W) uint8 and labels (B,) int32, B at least 1; returns without waiting."""
        passes = list(self._divide(images, labels))
        result = StepResult([], [])
        for number, parts in enumerate(passes):
            losses, corrects = self._gradients(parts)
            result.losses += losses
            result.corrects += corrects
            self._accumulate(number, len(parts), len(passes[number + 1]) if number + 1 < len(passes) else 0)
        for device in self.devices[len(passes[0]):]:  # a last batch with fewer images than devices
            self._clear_gradients(device)
        self._trainer.set_learning_rate(learning_rate)
        self._trainer.step(len(labels))  # divides the summed gradients by the batch's size
        if self.config.dtype != 'float16':  # there overflows are ordinary: the loss scale falls, the update is left out
            result.finite = self._gradient_is_finite()
        return result

    def _accumulate(self, number: int, here: int, following: int) -> None:
        """Add up what pass `number` left as gradients on the first `here` devices; `following` of them have another."""
        if self._accumulation is not None:
            for index, device in enumerate(self.devices[:here]):
                if index < following:
                    self._accumulation.keep(device, first=number == 0)
                elif number > 0:
                    self._accumulation.finish(device)

    def _gradient_is_finite(self) -> Any:
        """An array of 1 or 0, not yet waited for. Of vectors, such as batch norm's: few, and in every layer."""
        gradients = [parameter.grad(self.devices[0]) for parameter in self._trainable().values()]
        gradients = [gradient for gradient in gradients if len(gradient.shape) == 1] or gradients
        flag = mx.nd.ones((1,), ctx=self.devices[0])
        for begin in range(0, len(gradients), ARRAYS_A_CALL):
            some = gradients[begin:begin + ARRAYS_A_CALL]
            mx.nd.multi_all_finite(*some, num_arrays=len(some), init_output=False, out=flag)
        return flag

    def _scaled(self, losses: List[Any]) -> ContextManager[List[Any]]:
        """`losses`, or their gradients, times float16's loss scale, which the trainer then divides by."""
        if self.config.dtype != 'float16':
            return contextlib.nullcontext(losses)
        return precision.amp().scale_loss(losses, self._trainer)  # type: ignore[no-any-return]

    def _clear_gradients(self, device: Any) -> None:
        for parameter in self._trainable().values():
            parameter.grad(device)[:] = 0
            parameter.data(device)._fresh_grad = True  # as a backward pass would say

    def _named(self) -> Dict[str, Any]:
        """The network's parameters under the names that checkpoints have them by."""
        return dict(self.net._collect_params_with_prefix())

    def _trainable(self) -> Dict[str, Any]:
        return {name: parameter for name, parameter in self._named().items() if parameter.grad_req != 'null'}

    def _statistics(self) -> Dict[str, Any]:
        """Batch norm's running means and variances."""
        return {name: parameter for name, parameter in self._named().items() if parameter.grad_req == 'null'}

    def average_statistics(self) -> None:
        """Give every device the mean of the devices' running statistics, which is what a checkpoint holds."""
        if len(self.devices) > 1:
            mx.nd.waitall()  # running statistics lag behind
            for parameter in self._statistics().values():
                parameter.set_data(mx.nd.array(mean_over_devices(parameter)))

    def state(self) -> Dict[str, np.ndarray]:
        """What a checkpoint must hold beside the network, by name, for the training to go on bit for bit.

        `optimizer/<parameter>/<number>`, one device's, as all have the same; `updates` and `devices`, their numbers; of
        several devices `device<number>/<parameter>`, each one's running statistics; in float16 `loss_scale`.
        """
        mx.nd.waitall()
        updater, indices = self._trainer._updaters[0], self._trainer._param2idx
        arrays = {f'optimizer/{name}/{number}': state.asnumpy() for name, parameter in self._trainable().items()
                  for number, state in enumerate(_flat(updater.states.get(indices[parameter.name])))}
        arrays['updates'] = np.array(self._trainer._optimizer.num_update)
        arrays['devices'] = np.array(len(self.devices))
        if len(self.devices) > 1:
            arrays.update((f'device{number}/{name}', parameter.data(device).asnumpy())
                          for name, parameter in self._statistics().items()
                          for number, device in enumerate(self.devices))
        if self.config.dtype == 'float16':
            scaler = self._trainer._amp_loss_scaler
            arrays['loss_scale'] = np.array([scaler._loss_scale, scaler._next_loss_scale, scaler._unskipped])
        return arrays

    def restore(self, arrays: Dict[str, np.ndarray]) -> None:
        """Go on from what `state` returned; the network's parameters are loaded apart, and before.

        Raises:
            FailedError: the state of another optimizer or network.
        """
        optimizer, indices = self._trainer._optimizer, self._trainer._param2idx
        updates = int(arrays['updates'])
        optimizer.begin_num_update = optimizer.num_update = updates
        for name, parameter in self._trainable().items():
            for updater, device in zip(self._trainer._updaters, self.devices):
                index = indices[parameter.name]
                state = optimizer.create_state_multi_precision(index, parameter.data(device))
                for number, array in enumerate(_flat(state)):
                    _fill(array, arrays, f'optimizer/{name}/{number}', present=updates > 0)
                updater.states[index], updater.states_synced[index] = state, True
        if int(arrays['devices']) == len(self.devices) > 1:
            for name, parameter in self._statistics().items():
                for number, device in enumerate(self.devices):
                    _fill(parameter.data(device), arrays, f'device{number}/{name}')
        if self.config.dtype == 'float16':
            scaler = self._trainer._amp_loss_scaler
            scaler._loss_scale, scaler._next_loss_scale, unskipped = arrays['loss_scale']
            scaler._unskipped = int(unskipped)

    def count_correct(self, batches: Iterable[Tuple[np.ndarray, np.ndarray]]) -> int:
        """Number of correct predictions; labels of -1 count as wrong."""
        total = 0
        pending: List[StepResult] = []
        for images, labels in batches:
            pending.append(StepResult([], [
                self._correct(part) for parts in self._divide(images, labels) for part in parts]))
            if len(pending) > 2:  # keep the engine busy, but not arbitrarily far ahead
                total += pending.pop(0).read()[1]
        return total + sum(result.read()[1] for result in pending)

    def _divide(self, images: np.ndarray, labels: np.ndarray) -> Iterator[List[Part]]:
        """For each pass its parts, one on each of the first devices; their sizes as equal as can be, none is empty."""
        passes = self.config.accumulate
        shares = [list(zip(*(np.array_split(array, passes) for array in share))) for share in zip(
            *(np.array_split(array, len(self.devices)) for array in (images, labels)))]
        for parts in zip(*shares):
            filled = [(x, y, device) for (x, y), device in zip(parts, self.devices) if len(y)]
            if filled:
                yield [(mx.nd.array(x, ctx=device, dtype='uint8'), mx.nd.array(y, ctx=device, dtype='int32'))
                       for x, y, device in filled]


class HybridizedEngine(Engine):
    """Gluon's compiled graph (CachedOp), or eager operators where `hybridize` is off. What is fastest."""

    def _compile(self) -> None:
        if self.config.hybridize:
            self.classifier.hybridize(static_alloc=True, static_shape=True)

    def _gradients(self, parts: Sequence[Part]) -> Tuple[List[Any], List[Any]]:
        with mx.autograd.record():
            losses, corrects = map(list, zip(*(self.classifier(*part) for part in parts)))
            with self._scaled(losses) as scaled:
                mx.autograd.backward(scaled)
        return losses, corrects

    def _correct(self, part: Part) -> Any:
        return self.classifier(*part)[1]


def _flat(state: Any) -> List[Any]:
    """The arrays of an optimizer's state, which is None, an array, or a tuple of such."""
    if state is None:
        return []
    return [array for part in state for array in _flat(part)] if isinstance(state, (list, tuple)) else [state]


def _fill(target: Any, arrays: Dict[str, np.ndarray], name: str, present: bool = True) -> None:
    """Copy arrays[name] into the NDArray `target`, which has its shape and type."""
    source = arrays.get(name)
    if source is None and not present:
        return
    if source is None or source.shape != target.shape or source.dtype != target.dtype:
        found = 'absent' if source is None else f'{source.dtype} {source.shape}'
        raise FailedError(f"the checkpoint's {name} is {found} where this training needs {np.dtype(target.dtype)} "
                          f'{target.shape}: it is of another optimizer or network')
    target[:] = source
