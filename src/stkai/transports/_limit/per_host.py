"""One limiter per origin, made when the origin is first seen."""

import threading
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

import httpx

from ..._errors import ConfigurationError
from ..._forks import after_fork
from ..._urls import origin_of, show_origin
from .limiter import Limiter


class PerHost:
    """One limiter for each origin that a stack talks to.

    Args:
        make: called once for each origin, such as `"https://api.example.com"` (lower case, without the default port);
            returns its limiter.

    Raises:
        ConfigurationError: `make` is not a function; or, on a request, it returned no limiter.
    """

    def __init__(self, make: Callable[[str], Limiter]) -> None:
        if not callable(make):
            msg = f"PerHost needs a function of an origin, such as lambda origin: TokenBucket(10, 60), not {make!r}"
            raise ConfigurationError(msg)
        self._make = make
        self._limiters: dict[Any, Limiter] = {}
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
        if limiter is not None:
            return limiter
        with self._making:
            if origin not in self._limiters:
                made = self._limiters[origin] = self._made(show_origin(url).lower())
                for layer in list(self._layers):
                    _subscribe(made, layer)
        return self._limiters[origin]

    def _made(self, origin: str) -> Limiter:
        made: object = self._make(origin)
        if isinstance(made, type) or not isinstance(made, Limiter):
            msg = f"the function given to PerHost must return a limiter, such as TokenBucket(10, 60), not {made!r}"
            raise ConfigurationError(msg)
        return made

    def subscribe(self, layer: Any) -> None:
        """Tell the listener of a layer's stack what happens to the stores of limiters that share their quota."""
        self._layers.add(layer)
        for limiter in list(self._limiters.values()):
            _subscribe(limiter, layer)

    def __len__(self) -> int:
        """How many origins have been seen."""
        return len(self._limiters)

    def __repr__(self) -> str:
        return f"PerHost({len(self._limiters)} origins)"


def _subscribe(limiter: Limiter, layer: Any) -> None:
    subscribe = getattr(limiter, "subscribe", None)
    if subscribe is not None:
        subscribe(layer)
