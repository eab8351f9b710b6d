"""Memory that was too small for a training: what was asked, what that needs by plan, what there was, and what fits.

MXNet cannot be relied on in a process that ran out of memory: it may hang. So all that is found out here afterwards is
found in another process, and the command line ends this one at once.
"""
import contextlib
import dataclasses
import shlex
from typing import Any, Dict, Iterator, Optional, Tuple

from gluon_aa import isolation
from gluon_aa.errors import FailedError, OutOfMemory, reason
from gluon_aa.memory import meter
from gluon_aa.memory.devices import DEVICES, Device, in_words
from gluon_aa.memory.failures import is_out_of_memory
from gluon_aa.training import automatic, checkpoint
from gluon_aa.training.config import RESUMABLE, TrainConfig
from gluon_aa.training.tracking import RunDirectory

#: Seconds that planning may take.
TIME_LIMIT = 120.0

#: Share of a plan that did not hold which a change may need: Python's own objects and the images are in no plan.
LESS = 0.8

Row = Dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Subject:
    """What is trained, and where. Made when MXNet is there, and nothing of the network is.

    Attributes:
        image_shape: (C, H, W).
        memory: bytes that each device has for it, as `Device.memory` has them; None where nobody says.
    """

    config: TrainConfig
    classes: int
    image_shape: Tuple[int, int, int]
    memory: Optional[int]

    @classmethod
    def of(cls, config: TrainConfig, classes: int, image_shape: Tuple[int, int, int]) -> 'Subject':
        """The subject, its devices asked for the memory they have now."""
        if config.gpus:
            return cls(config, classes, image_shape, min(map(automatic.gpu_bytes, config.gpus)))
        left = meter.left()
        return cls(config, classes, image_shape, None if left is None else left // config.cpus)


@contextlib.contextmanager
def explained(subject: Subject, run: Optional[RunDirectory] = None,
              resolved: Optional[TrainConfig] = None) -> Iterator[None]:
    """Raise OutOfMemory, which tells all, in place of whatever means that memory was too small.

    Args:
        run: where the training has got that far.
        resolved: the configuration with its automatic choices made, likewise.
    """
    try:
        yield
    except Exception as error:  # noqa: B902  MXNet's, Python's, NumPy's, and ours made of those
        if not is_out_of_memory(error):
            raise
        raise OutOfMemory(_message(error, subject, run, resolved or subject.config)) from error


def _message(error: Exception, subject: Subject, run: Optional[RunDirectory], config: TrainConfig) -> str:
    places = [f'gpu({gpu})' for gpu in config.gpus] or [f'cpu({cpu})' for cpu in range(config.cpus)]
    parts = f' in {config.accumulate} micro-batches' if config.accumulate > 1 else ''
    asked = (f'out of memory ({_short(error)}): {config.net}, batch of {config.batch_size}{parts} on '
             f'{", ".join(places)}, attention {config.attention_backend}, memory mode {config.memory_mode}')
    there = '' if subject.memory is None else f', where there were {in_words(_device(subject).usable)}'
    kept = _kept(run) if run else ''
    try:
        found = isolation.call(f'{__name__}:find_out', {
            'asked': subject.config.values(), 'resolved': config.values(), 'classes': subject.classes,
            'image_shape': list(subject.image_shape), 'memory': subject.memory}, TIME_LIMIT)
    except FailedError as failure:
        return (f'{asked}{there}; {kept}what fits is not known ({failure}): try --accumulate, or a smaller --batch-size')
    needs = f'{asked}, needs {in_words(found["bytes"])} on each device by plan{there}'
    if found['flags'] is None:
        return f'{needs}; {kept}no change that is known fits: choose a smaller network, or more memory'
    return (f'{needs}; {kept}{_command(run, found["keys"], found["flags"])} fits, in {in_words(found["safe_bytes"])} '
            'by plan')


def _short(error: Exception) -> str:
    """The end of the last line that an error says."""
    return reason(error).split(': ')[-1][-120:]


def _kept(run: RunDirectory) -> str:
    positions = checkpoint.positions(run.checkpoints)
    return f'{run.path} is whole, {f"with {positions[-1]}" if positions else "as yet without a checkpoint"}; '


def _command(run: Optional[RunDirectory], keys: Row, flags: Any) -> str:
    words = ' '.join(map(shlex.quote, flags))
    if run is None:
        return f'the same with {words}'
    if set(keys) <= set(RESUMABLE):
        return f'gluon-aa train --resume {shlex.quote(str(run.path))} {words}'
    return f'a new training, gluon-aa train --config {shlex.quote(str(run.path / "config.yaml"))} {words},'


def _device(subject: Subject) -> Device:
    if subject.config.gpus:
        return Device('gpu', 'GPU', True, subject.memory)
    return DEVICES['cpu']._replace(memory=subject.memory)


def find_out(asked: Row, resolved: Row, classes: int, image_shape: Any, memory: Optional[int]) -> Row:
    """In a process of its own: `bytes` that the plan says are needed; `keys`, `flags` and `safe_bytes` of the change
    that fits, or None.

    What did not fit although its plan does is asked to need less than that plan.
    """
    from gluon_aa.memory.advice import change_that_fits
    from gluon_aa.training.config import from_values
    subject = Subject(from_values(asked), classes, tuple(image_shape), memory)
    needed = automatic.plan(from_values(resolved), classes, subject.image_shape, _device(subject)).safe
    usable = min(_device(subject).usable, int(LESS * needed)) if memory is not None else int(LESS * needed)
    device = _device(subject)
    share = device._replace(memory=10 ** 9).usable / 10 ** 9  # of a device's memory that plans may come to
    change = change_that_fits(asked, classes, image_shape, device._replace(memory=int(usable / share)))
    found = {} if change is None else {'keys': change.keys, 'safe_bytes': change.safe_bytes}
    return {'bytes': needed, 'flags': None if change is None else change.flags(), **found}
