"""What became of one request of many."""

from dataclasses import dataclass

import httpx


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one request of `send_all` or `asend_all`: a response or an error, never both.

    Attributes:
        index: the place of the request in the iterable, from 0.
        request: the request itself, as it came from the iterable.
        response: the answer, with its body read; also one with a status such as 404 or 500.
        error: the exception that the call raised.
    """

    index: int
    request: httpx.Request
    response: httpx.Response | None
    error: Exception | None
