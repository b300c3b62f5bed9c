"""One limiter per origin, made when the origin is first seen."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import httpx

from ..._errors import ConfigurationError
from ..._forks import after_fork
from ..._urls import origin_of, show_origin
from .limiter import Limiter


class PerHost:
    """One limiter for each origin that a stack talks to.

    Args:
        make: called when an origin is first seen, such as `"https://api.example.com"` (lower case, without the default
            port); returns its limiter.
        max_origins: how many limiters to keep. Beyond that, the least recently used ones are dropped, and made anew
            when their origin is seen again; but never one that a request waits for or was sent with.

    Raises:
        ConfigurationError: `make` is not a function, or `max_origins` not a positive whole number; or, on a request,
            `make` returned no limiter.
    """

    def __init__(self, make: Callable[[str], Limiter], *, max_origins: int = 1000) -> None:
        if not callable(make):
            msg = f"PerHost needs a function of an origin, such as lambda origin: TokenBucket(10, 60), not {make!r}"
            raise ConfigurationError(msg)
        if isinstance(max_origins, bool) or not isinstance(max_origins, int) or max_origins < 1:
            msg = f"max_origins must be a whole number of at least 1, not {max_origins!r}"
            raise ConfigurationError(msg)
        self._make = make
        self._most = max_origins
        # The most recently used one is last. A request in progress holds its limiter, which may have been dropped here.
        self._limiters: OrderedDict[Any, Limiter] = OrderedDict()
        self._in_use: WeakValueDictionary[Any, Limiter] = WeakValueDictionary()
        self._layers: WeakSet[Any] = WeakSet()
        self._renew_lock()
        after_fork(self, PerHost._renew_lock)

    def _renew_lock(self) -> None:
        # Held while `make` runs, so that each origin gets one limiter; `make` may ask for another origin's.
        self._making = threading.RLock()

    def limiter_for(self, url: httpx.URL) -> Limiter:
        """The limiter of the URL's origin.

        Raises:
            ConfigurationError: `make` returned no limiter.
        """
        origin = origin_of(url)
        limiter = self._limiters.get(origin)
        if limiter is None:
            with self._making:
                return self._found(origin, url)
        try:
            self._limiters.move_to_end(origin)
        except KeyError:  # Another thread has just dropped it.
            self._remember(origin, limiter)
        return limiter

    def _found(self, origin: Any, url: httpx.URL) -> Limiter:
        limiter = self._limiters.get(origin)
        if limiter is None:
            limiter = self._in_use.get(origin)
        if limiter is None:
            limiter = self._made(show_origin(url).lower())
            # `make` may itself have asked for this origin.
            limiter = self._limiters.setdefault(origin, limiter)
            for layer in list(self._layers):
                _subscribe(limiter, layer)
        self._remember(origin, limiter)
        return limiter

    def _remember(self, origin: Any, limiter: Limiter) -> None:
        """Keep the limiter, and drop the least recently used one if there are too many."""
        with self._making:
            self._limiters[origin] = limiter
            if len(self._limiters) > self._most:
                oldest, dropped = self._limiters.popitem(last=False)
                try:
                    self._in_use[oldest] = dropped
                except TypeError:  # It has slots, so nobody can tell whether it is still in use: keep it.
                    self._limiters[oldest] = dropped

    def _made(self, origin: str) -> Limiter:
        made: object = self._make(origin)
        if isinstance(made, type) or not isinstance(made, Limiter):
            msg = f"the function given to PerHost must return a limiter, such as TokenBucket(10, 60), not {made!r}"
            raise ConfigurationError(msg)
        return made

    def subscribe(self, layer: Any) -> None:
        """Tell the listener of a layer's stack what happens to the stores of limiters that share their quota."""
        self._layers.add(layer)
        for limiter in [*self._limiters.values(), *self._in_use.values()]:
            _subscribe(limiter, layer)

    def __len__(self) -> int:
        """How many origins have a limiter."""
        return len(self._limiters)

    def __repr__(self) -> str:
        return f"PerHost({len(self._limiters)} origins)"


def _subscribe(limiter: Limiter, layer: Any) -> None:
    subscribe = getattr(limiter, "subscribe", None)
    if subscribe is not None:
        subscribe(layer)
