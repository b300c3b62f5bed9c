"""The costs of calls: estimated before they are sent, and settled when the body of the answer has ended."""

import logging
from collections.abc import Callable
from typing import Any, Final

import httpx

from ..._errors import InvalidArgumentError
from ..._log import logger
from ..._process import raise_interrupt
from ...costs import CountedFromText
from .._bodies import is_read
from .._body_end import BodyEnd
from .._options import UNSET, check_cost
from .limiter import Plan, Pricing, Turn

# Bytes as received; a longer answer is not kept in memory, since it will not report a usage.
MAX_BODY: Final = 16_777_216
# Bytes after decoding; a short body may decompress to gigabytes.
MAX_DECODED_BODY: Final = 67_108_864
_PIECE_SIZE: Final = 1024  # Bytes to decompress at once; with gzip, they become at most 1 MiB.

_ENCODING_HEADER: Final = "content-encoding"

Estimate = Callable[[httpx.Request], float]
Settle = Callable[[httpx.Response], float | None]


class Meter:
    """Estimates and settles the costs of a layer's calls, with the layer's functions where a limiter has no `cost`."""

    def __init__(self, cost: Estimate | None, settle: Settle | None) -> None:
        self._cost, self._settle = cost, settle
        self._has_warned = self._has_advised = False

    def price(self, turn: Turn, plan: Plan, request: httpx.Request, given: Any) -> None:
        """Set what the turn costs each limiter that counts units: `given`, or an estimate of at most its `max_cost`."""
        if given is not UNSET and given is not None:
            turn.cost = given
            return
        known: dict[int, float] = {}
        prices: list[tuple[Any, float]] = []
        for limit in plan.priced:
            own = getattr(limit, "cost", None)  # Custom limiters need not have one.
            function = self._cost if own is None else own
            if function is None:
                raise InvalidArgumentError(
                    f"a limit counts units (max_cost={limit.max_cost:g}), but this call has no cost: give it a cost=,"
                    " or give one to the limiter or the stack, such as cost=stkai.costs.llm_tokens()"
                )
            if id(function) not in known:
                known[id(function)] = _estimated(function, request)
            prices.append((limit, min(known[id(function)], limit.max_cost)))
        if len(prices) == 1:
            turn.cost = prices[0][1]
        else:
            turn.costs = {source: cost for limit, cost in prices for source in limit.sources}

    def bill(self, turn: Turn, plan: Plan, request: httpx.Request, response: httpx.Response) -> "Bill | None":
        """The bill that collects the body of an answer and settles its cost; None if nothing can be settled."""
        settles: dict[int, tuple[Settle, list[Any]]] = {}
        for limit in plan.priced:
            settle, own = self._settle, getattr(limit, "cost", None)
            if own is not None:
                settle = own.settle if isinstance(own, Pricing) else None
            if settle is not None:
                settles.setdefault(id(own), (settle, []))[1].append(limit)
        return Bill(self, turn, settles, request, response) if settles else None

    def warn_of_failure(self, why: str) -> None:
        """Warn about the first failure only: a function that fails usually fails for every answer."""
        level = logging.DEBUG if self._has_warned else logging.WARNING
        self._has_warned = True
        logger.log(level, "a call keeps its estimated cost: %s", why)

    def advise_on_usage(self) -> None:
        """Explain, once, how to get a usage from streams."""
        if not self._has_advised:
            self._has_advised = True
            logger.warning(
                "a stream reported no usage, so its cost was counted from the text that arrived; send"
                ' stream_options={"include_usage": True} to have the exact number'
            )


class Bill:
    """The costs of one call, to be settled when the body of its answer has ended."""

    def __init__(
        self,
        meter: Meter,
        turn: Turn,
        settles: dict[int, tuple[Settle, list[Any]]],
        request: httpx.Request,
        response: httpx.Response,
    ) -> None:
        self._meter, self._turn, self._settles, self._request = meter, turn, settles, request
        # Not the response: its body references this object.
        self._kind, self._status, self._headers = type(response), response.status_code, response.headers
        self._read = response if is_read(response) else None
        self.kept = _Chunks(MAX_BODY)

    def settle(self, how: BodyEnd, now: float) -> None:
        """Settle the actual cost of the call.

        A partially read body is settled only if it is an event stream, or if the request was refused (4xx).

        After None, an invalid number, an exception or too long a body, the call keeps its estimate.
        """
        content_type = self._headers.get("content-type", "").lower()
        is_known = content_type.startswith("text/event-stream") or httpx.codes.is_client_error(self._status)
        if how is BodyEnd.DROPPED or (how is not BodyEnd.WHOLE and not is_known):
            return
        try:
            response = self._whole()
        except Exception as error:  # noqa: BLE001 - a body that cannot be decoded
            raise_interrupt(error)
            self._meter.warn_of_failure(f"the body cannot be read: {error!r}")
            return
        if response is None:
            logger.debug("a call keeps its estimated cost: the answer is too long to look for its usage")
            return
        for settle, limits in self._settles.values():
            try:
                cost = settle(response)
                if cost is None:
                    continue
                for limit in limits:
                    limit.settle(self._turn, check_cost(cost), now)
                # A stream that was closed early might have reported it unasked at its end, as Mistral's do.
                if isinstance(cost, CountedFromText) and (
                    how is BodyEnd.WHOLE or b"[DONE]" in response.content
                ):
                    self._meter.advise_on_usage()
            except InvalidArgumentError as error:
                self._meter.warn_of_failure(str(error))
            except Exception as error:  # noqa: BLE001 - user code; whatever it raises
                raise_interrupt(error)
                self._meter.warn_of_failure(f"settle raised {error!r}")

    def _whole(self) -> httpx.Response | None:
        """The same response with its whole body, decoded; None if that is too long."""
        if self._read is not None:
            # If the wire reads the body, the client sets this later.
            if getattr(self._read, "_request", None) is None:
                self._read.request = self._request
            return self._read
        kept, headers = self.kept, self._headers
        if _ENCODING_HEADER in headers and not kept.is_full:
            body = b"".join(kept.chunks)
            pieces = (body[start : start + _PIECE_SIZE] for start in range(0, len(body), _PIECE_SIZE))
            kept = _unpacked(self._kind(self._status, headers=headers, content=pieces))
            headers = headers.copy()
            del headers[_ENCODING_HEADER]
        if kept.is_full:
            return None
        content = b"".join(kept.chunks)
        return self._kind(self._status, headers=headers, content=content, request=self._request)


def _estimated(function: Any, request: httpx.Request) -> float:
    estimate = function.estimate if isinstance(function, Pricing) else function
    try:
        return check_cost(estimate(request))
    except Exception as error:
        raise_interrupt(error)
        msg = f"the cost function gave no cost for {request.method} {request.url.host}: {error!r}"
        raise InvalidArgumentError(msg) from error


def _unpacked(packed: httpx.Response) -> "_Chunks":
    kept = _Chunks(MAX_DECODED_BODY)
    try:
        for part in packed.iter_bytes():
            kept.add(part)
            if kept.is_full:
                break
    except httpx.DecodingError:
        if not kept.chunks:
            raise
        # The body was not read to its end.
    return kept


class _Chunks:
    """The chunks of a body of up to `most` bytes; of a longer body, nothing is kept."""

    def __init__(self, most: int) -> None:
        self.chunks: list[bytes] = []
        self._left = most

    @property
    def is_full(self) -> bool:
        return self._left < 0

    def add(self, chunk: bytes) -> None:
        self._left -= len(chunk)
        if self._left < 0:
            self.chunks.clear()
        else:
            self.chunks.append(chunk)
