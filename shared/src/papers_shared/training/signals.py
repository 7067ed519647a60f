"""SIGTERM and Ctrl-C as a wish that a loop can grant when its step is over."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Signals:
    """While entered, notes SIGTERM and SIGINT; a second SIGINT raises KeyboardInterrupt.

    Attributes:
        received: the signal's number, 0 before any.
    """

    def __init__(self) -> None:
        self.received = 0
        self._earlier: dict[int, Any] = {}

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received == number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __enter__(self) -> Signals:
        # Python lets the main thread alone handle signals; elsewhere they act as usual.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._earlier[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for number, handler in self._earlier.items():
            signal.signal(number, handler)
