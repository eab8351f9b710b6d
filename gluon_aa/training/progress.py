"""How far a training has come."""
import dataclasses
from typing import Any, Mapping

from gluon_aa.training.checkpoint import Position


@dataclasses.dataclass
class Progress:
    """How far a training has come: what a checkpoint's state.json keeps of it."""

    epochs: int = 0  # whole ones
    steps: int = 0  # of the epoch under way
    loss: float = 0.0  # sum over the images of these steps
    correct: int = 0  # predictions, likewise
    training_seconds: float = 0.0  # of these steps
    epoch_seconds: float = 0.0  # of the epoch under way, validation included
    seconds: float = 0.0  # of the whole training
    best_epoch: int = 0
    best_val_accuracy: float = -1.0

    @property
    def position(self) -> Position:
        return Position(self.epochs, self.steps)

    def finish_epoch(self, val_accuracy: float) -> None:
        """Go on to the next epoch."""
        self.epochs, self.steps = self.epochs + 1, 0
        self.loss, self.correct, self.training_seconds, self.epoch_seconds = 0.0, 0, 0.0, 0.0
        self.note_accuracy(self.epochs, val_accuracy)

    def note_accuracy(self, epoch: int, val_accuracy: float) -> None:
        if val_accuracy >= self.best_val_accuracy:  # of equals the later: its learning rate is lower
            self.best_epoch, self.best_val_accuracy = epoch, val_accuracy

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> 'Progress':
        """The progress in a checkpoint's state.

        Raises:
            KeyError: it is not all there.
        """
        return cls(**{field.name: state[field.name] for field in dataclasses.fields(cls)})
