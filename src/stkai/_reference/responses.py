"""The responses of the reference's clients: those of httpx, with what code that was written for requests calls."""

from collections.abc import Iterator
from typing import Any, Final

import httpx

from .._exchange import StreamedResponse

_MAX_REDIRECTS: Final = 30
"""As many as requests follows."""


class _LikeRequests(httpx.Response):
    """What `requests.Response` has beyond an `httpx.Response`."""

    @property
    def ok(self) -> bool:
        """Whether the status is less than 400."""
        return not self.is_error

    def iter_lines(self, chunk_size: int | None = None, decode_unicode: bool = True) -> Iterator[Any]:
        """The lines of the body as they arrive: text, or with `decode_unicode=False` bytes.

        Args:
            chunk_size: accepted, and of no use.
            decode_unicode: whether the lines are text.
        """
        for line in super().iter_lines():
            yield line if decode_unicode else line.encode(self.encoding or "utf-8")

    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        """The body as it arrives, in pieces of that many bytes, or of any size."""
        return self.iter_text(chunk_size) if decode_unicode else self.iter_bytes(chunk_size)


class ReferenceResponse(_LikeRequests):
    """An `httpx.Response` that also has `ok`, `iter_content`, and `iter_lines` with the parameters of requests."""


class StreamedReferenceResponse(_LikeRequests, StreamedResponse):
    """The same for `post_stream`."""


def like_requests(response: Any) -> Any:
    """The same response, with what requests' has."""
    classes = {httpx.Response: ReferenceResponse, StreamedResponse: StreamedReferenceResponse}
    kind = classes.get(type(response))
    if kind is not None:
        response.__class__ = kind
    return response


def follow(transport: httpx.BaseTransport, response: httpx.Response) -> httpx.Response:
    """Where the redirects lead that begin with `response`; as in a client of httpx, with one deadline for all hops.

    Raises:
        httpx.TooManyRedirects: they do not end.
    """
    if not response.has_redirect_location:
        return response
    client = httpx.Client(
        transport=_From(response, transport), follow_redirects=True, max_redirects=_MAX_REDIRECTS
    )
    # It is not closed: the transport is not its own.
    return client.send(response.request, auth=httpx.Auth())


class _From(httpx.BaseTransport):
    """Answers the first request with a response that is there already, and sends the others."""

    def __init__(self, response: httpx.Response, transport: httpx.BaseTransport) -> None:
        self._first: httpx.Response | None = response
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        first, self._first = self._first, None
        return first or self._transport.handle_request(request)
