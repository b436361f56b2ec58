"""Signal handlers set flags; the loop checks them after every step."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from resnets.errors import Interrupted


@dataclass
class SignalFlags:
    """SIGINT and SIGTERM end training after the current step; the same again ends it at once.

    Not a different one: each rank gets a SIGINT itself, and torchrun passes it on as SIGTERM.
    SIGUSR1 saves and goes on. SIGHUP, as when a terminal closes, changes nothing. With `at_once` no
    step can be lost, and the first such signal ends what runs.
    """

    signal: int = 0
    save: bool = False
    at_once: bool = False
    previous: dict[int, object] = field(default_factory=dict)

    def __enter__(self) -> SignalFlags:
        if threading.current_thread() is not threading.main_thread():
            return self  # Python hands signals to the main thread only
        for name in ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP"):
            if number := getattr(signal, name, None):  # Windows has the first two
                self.previous[number] = signal.signal(number, self.handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self.previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    @contextmanager
    def interruptible(self, command: str) -> Iterator[None]:
        """Let a signal stop what runs at once: `command` does the rest. Raises Interrupted."""
        try:
            if self.signal:
                raise KeyboardInterrupt
            self.at_once = True
            yield
        except KeyboardInterrupt:
            raise Interrupted(command, self.signal or signal.SIGINT) from None
        finally:
            self.at_once = False

    def handle(self, number: int, _: FrameType | None) -> None:
        """Set a flag; at the second signal to stop behave as Python does."""
        if number in (signal.SIGINT, signal.SIGTERM):
            repeated = self.signal == number
            self.signal = self.signal or number
            if repeated or self.at_once:
                self.at_once = False  # so that the cleaning up is not interrupted
                raise KeyboardInterrupt
        else:
            self.save |= signal.Signals(number).name == "SIGUSR1"
