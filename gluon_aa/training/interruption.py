"""Ctrl-C and SIGTERM as a wish to stop, which the training grants when its checkpoint is written."""
import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Dict, Optional, Type

SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(KeyboardInterrupt):
    """The training was stopped by a signal; says what is kept and how to go on."""


class StopRequest:
    """`with StopRequest() as stop`: within, the first of SIGNALS sets `stop.signal`; a second one acts as ever.

    Outside the main thread, where Python allows no handlers, signals are left alone.
    """

    def __init__(self) -> None:
        self.signal: Optional[str] = None
        self._before: Dict[int, Any] = {}

    def __enter__(self) -> 'StopRequest':
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:  # as the shell's background jobs ignore Ctrl-C
                    self._before[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: Optional[Type[BaseException]], error: Optional[BaseException],
                 trace: Optional[TracebackType]) -> None:
        self._give_back()

    def _note(self, number: int, frame: Optional[FrameType]) -> None:
        self.signal = signal.Signals(number).name
        self._give_back()

    def _give_back(self) -> None:
        while self._before:
            number, handler = self._before.popitem()
            signal.signal(number, handler)
