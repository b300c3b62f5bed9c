"""The outcome of one request of a batch."""

from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one request of `send_all` or `asend_all`: a response or an error, never both.

    Attributes:
        index: the position of the request in the iterable, from 0.
        request: the request from the iterable.
        response: the answer, with its body read; this includes statuses such as 404 and 500.
        error: the exception that the call raised.
    """

    index: int
    request: httpx.Request
    response: httpx.Response | None
    error: Exception | None
