"""One limiter for each key of a request, such as its model or its origin, made when the key is first seen."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from contextlib import suppress
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import httpx

from ..._checks import POSITIVE_COUNT, check_number, is_async, safe_repr
from ..._errors import ConfigurationError
from ..._process import begin_in_each_process
from ..._secrets import StaysInProcess
from ..._urls import DEFAULT_PORTS, show_origin
from .all_of import checked_limiter
from .limiter import Chooser, Limiter, subscribe


class PerKey(StaysInProcess, Chooser):
    """One limiter for each key.

    Args:
        key: the key of a request, such as `stkai.costs.model_of`.
        make: called when a key is first seen; returns its limiter, or a list of limiters.
        max_keys: how many limiters to keep. Beyond that, the least recently used ones are dropped, and recreated when
            their key is seen again; a limiter is never dropped while one of its requests waits or is in flight.

    Raises:
        ConfigurationError: `key` or `make` is not a function, or `max_keys` not a positive whole number; or, on a
            request, `make` returned no limiter.
    """

    def __init__(
        self, key: Callable[[httpx.Request], str], make: Callable[[str], Any], *, max_keys: int = 1000
    ) -> None:
        for name, function in (
            ("stkai.costs.model_of as key", key),
            ("lambda key: TokenBucket(10, 60) as make", make),
        ):
            of_async = is_async(function)  # Each coroutine would be a different key.
            # A class of stkai would take the key for its first number.
            of_ours = isinstance(function, type) and function.__module__.startswith(__package__)
            if of_async or of_ours or not callable(function):
                kind, given = type(self).__name__, f"{'the async ' * of_async}{function!r}"
                msg = f"{kind} needs a function such as {name}, not {given}"
                raise ConfigurationError(msg)
        self._most = check_number("max_keys", max_keys, POSITIVE_COUNT)
        self._key, self._make = key, make
        # The most recently used limiter is last. A request in progress references its limiter, even a dropped one.
        self._limiters: OrderedDict[Any, Limiter] = OrderedDict()
        self._in_use: WeakValueDictionary[Any, Limiter] = WeakValueDictionary()
        self._layers: WeakSet[Any] = WeakSet()
        begin_in_each_process(self, PerKey._renew_locks)

    def _renew_locks(self) -> None:
        # Held while `make` runs, so that each key gets one limiter; reentrant, since `make` may need another one.
        self._making = threading.RLock()
        # Held while the order of the limiters is read or changed, which would break if two threads did it at once.
        self._lock = threading.RLock()

    def limiter_for(self, request: httpx.Request) -> Limiter:
        """The limiter of the request's key.

        Raises:
            ConfigurationError: `make` returned no limiter.
        """
        key = self._key(request)
        with self._lock:
            limiter = self._limiters.get(key)
            if limiter is not None:
                self._limiters.move_to_end(key)
                return limiter
        with self._making:
            return self._limiter_of(key)

    def _limiter_of(self, key: Any) -> Limiter:
        limiter = self._limiters.get(key)
        if limiter is None:
            limiter = self._in_use.get(key)
        if limiter is None:
            limiter = self._made(str(key))
            # `make` may have used this key itself.
            limiter = self._limiters.get(key, limiter)
            for layer in list(self._layers):
                subscribe(limiter, layer)
        with self._lock:
            self._limiters[key] = limiter
            if len(self._limiters) > self._most:
                oldest, dropped = self._limiters.popitem(last=False)
                with suppress(TypeError):  # It has slots, so no weak reference is possible.
                    self._in_use[oldest] = dropped
        return limiter

    def _made(self, key: str) -> Limiter:
        kind = f"the function given to {type(self).__name__}"
        wanted = f"{kind} must return a limiter, such as TokenBucket(10, 60), or a list of others; not "
        made = self._make(key)
        limiter: Limiter = checked_limiter([made] if isinstance(made, PerKey) else made, wanted)
        if self in getattr(limiter, "parts", ()):
            raise ConfigurationError(f"{wanted}{made!r}")
        return limiter

    def subscribe(self, layer: Any) -> None:
        """Report the events of shared limiters' stores to the listener of a layer's stack."""
        with self._making, self._lock:
            self._layers.add(layer)
            limiters = [*self._limiters.values(), *self._in_use.values()]
        for limiter in limiters:
            subscribe(limiter, layer)

    def __len__(self) -> int:
        """How many keys have a limiter."""
        return len(self._limiters)

    @safe_repr
    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self._limiters)} keys)"


class PerHost(PerKey):
    """One limiter for each origin that requests are sent to.

    Args:
        make: called when an origin is first seen, such as `"https://api.example.com"` (lower case, without the default
            port); returns its limiter, or a list of limiters.
        max_origins: how many limiters to keep; see `PerKey`.

    Raises:
        ConfigurationError: `make` is not a function, or `max_origins` not a positive whole number; or, on a request,
            `make` returned no limiter.
    """

    def __init__(self, make: Callable[[str], Any], *, max_origins: int = 1000) -> None:
        super().__init__(_origin, make, max_keys=check_number("max_origins", max_origins, POSITIVE_COUNT))


def _origin(request: httpx.Request) -> str:
    url = request.url
    if url.port == DEFAULT_PORTS.get(url.scheme):  # httpx keeps it if the scheme is in upper case.
        url = url.copy_with(port=None)
    return show_origin(url).lower()
