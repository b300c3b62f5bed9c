"""Recognises exceptions that a signal handler raised: they end a call, and are no failure of the code they interrupt.

Celery's soft time limit and `signal.alarm` work that way. Python runs a handler between two steps of the main thread,
so its exception comes out of whatever the thread is doing there, and wires wrap it like an error of their own: a
TimeoutError raised while they read becomes a ReadTimeout.
"""

import sys
import threading
from collections.abc import Iterator
from functools import partial
from importlib import import_module
from types import CodeType, FrameType
from typing import Any, Final

from ._errors import causes

# The public module looks each number and each handler up in an enum, which takes twenty times as long.
_signal: Final[Any] = import_module("_signal")
_NUMBERS: Final = tuple(_signal.valid_signals())


def raised_by_handler(error: BaseException) -> BaseException | None:
    """The exception that a signal handler raised, if that is what `error` is or was caused by."""
    if threading.current_thread() is not threading.main_thread():
        return None  # Handlers run in the main thread only.
    handlers = set(_handlers())
    for below in causes(error) if handlers else ():
        step = below.__traceback__
        while step is not None:
            if step.tb_frame.f_code in handlers:
                return below
            step = step.tb_next
    return None


def raise_interrupt(error: BaseException) -> None:
    """Raise what a signal handler raised, if that is what `error` is or was caused by; for an `except Exception`."""
    interrupt = raised_by_handler(error)
    if interrupt is not None:
        raise interrupt from None


def is_interrupt(error: BaseException) -> bool:
    """Whether an exception may have come at any moment, so that locks may still be held: Ctrl-C, a signal handler's."""
    if isinstance(error, Exception | GeneratorExit):
        return raised_by_handler(error) is not None
    return True


def refuse_in_handler() -> None:
    """Refuse a call that a signal handler makes while it interrupts another one of the same client.

    It could wait for ever for something that the interrupted call holds.

    Raises:
        RuntimeError: a handler is running.
    """
    handlers = set(_handlers())
    frame: FrameType | None = sys._getframe() if handlers else None  # noqa: SLF001 - inspect takes 5 ms to import
    while frame is not None:
        if frame.f_code in handlers:
            raise RuntimeError(IN_HANDLER)
        frame = frame.f_back


IN_HANDLER: Final = (
    "a signal handler cannot use the client that it interrupted: set a flag there, or put the work on a queue"
)


def _handlers() -> Iterator[CodeType]:
    """The code of the handlers that are installed."""
    for number in _NUMBERS:
        handler: Any = _signal.getsignal(number)
        while isinstance(handler, partial):
            handler = handler.func
        function = getattr(handler, "__func__", handler)
        code = getattr(function, "__code__", None) or getattr(type(function).__call__, "__code__", None)
        if code is not None and callable(handler):
            yield code
