"""Fork hooks, and detection of exceptions raised by signal handlers.

A forked child must not inherit the locks that its parent's threads hold, nor the connections that its parent uses. Two
processes that use one connection receive each other's responses; a lock whose holder was not forked is never released.

An exception raised by a signal handler ends a call, but is not a failure of the code that it interrupted. Celery's soft
time limit and `signal.alarm` work that way. Python runs a handler between two bytecodes of the main thread, so its
exception is raised by whatever that thread is executing, and wires wrap it like an error of their own: a TimeoutError
raised while they read becomes a ReadTimeout.
"""

import os
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from importlib import import_module
from types import CodeType, FrameType
from typing import Any, Final, TypeVar
from weakref import WeakKeyDictionary

from ._errors import causes

T = TypeVar("T")

IN_HANDLER: Final = (
    "a signal handler cannot use the client that it interrupted: set a flag there, or put the work on a queue"
)

_renewals: Final["WeakKeyDictionary[Any, Callable[[Any], None]]"] = WeakKeyDictionary()


def after_fork(thing: T, renew: Callable[[T], None]) -> None:
    """Call `renew(thing)` in every child that is forked while `thing` is alive."""
    _renewals[thing] = renew


def begin_in_each_process(thing: T, begin: Callable[[T], None]) -> None:
    """Call `begin(thing)` now, and in every child that is forked while `thing` is alive."""
    begin(thing)
    after_fork(thing, begin)


_parents: Final[list[object]] = []


def never_finalize(thing: object) -> None:
    """Keep an object of one of the parent's event loops alive: finalizing it in a child would use that loop."""
    _parents.append(thing)


def _renew_all() -> None:
    with warnings.catch_warnings():
        # Dropping sockets here closes them in the child only; they stay open in the parent.
        warnings.simplefilter("ignore", ResourceWarning)
        for thing, renew in list(_renewals.items()):
            renew(thing)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_renew_all)


# The public module converts each number and each handler to an enum, which takes twenty times as long.
_signal: Final[Any] = import_module("_signal")
_NUMBERS: Final = tuple(_signal.valid_signals())


def raised_by_handler(error: BaseException) -> BaseException | None:
    """The signal handler's exception that `error` is, or was caused by; None if there is none."""
    # Handlers run in the main thread only. While a greenlet is finalized, gevent has no object for the current thread.
    if threading.get_ident() != threading.main_thread().ident:
        return None
    handlers = set(_handlers())
    for below in causes(error) if handlers else ():
        step = below.__traceback__
        while step is not None:
            if step.tb_frame.f_code in handlers:
                return below
            step = step.tb_next
    return None


def raise_interrupt(error: BaseException) -> None:
    """Re-raise a signal handler's exception if `error` is, or was caused by, one; for use in `except Exception`."""
    interrupt = raised_by_handler(error)
    if interrupt is not None:
        raise interrupt from None


def is_interrupt(error: BaseException) -> bool:
    """Whether the exception is asynchronous (Ctrl-C, a signal handler), so that locks may still be held."""
    if isinstance(error, Exception | GeneratorExit):
        return raised_by_handler(error) is not None
    return True


def refuse_in_handler() -> None:
    """Reject a call from a signal handler that has interrupted another call of the same client.

    It could deadlock, waiting for something that the interrupted call holds.
    """
    handlers = set(_handlers())
    frame: FrameType | None = sys._getframe() if handlers else None  # noqa: SLF001 - inspect takes 5 ms to import
    while frame is not None:
        if frame.f_code in handlers:
            raise RuntimeError(IN_HANDLER)
        frame = frame.f_back


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
