"""The responses of the reference's clients: httpx responses, plus what code written for requests calls."""

from collections.abc import Iterator
from typing import Any, Final

import httpx

from .._client import HttpClient
from .._exchange import StreamedResponse

_MAX_REDIRECTS: Final = 30
"""As many as requests follows."""


class _LikeRequests(httpx.Response):
    """What `requests.Response` has that `httpx.Response` lacks."""

    @property
    def ok(self) -> bool:
        """Whether the status is less than 400."""
        return not self.is_error

    def iter_lines(self, chunk_size: int | None = None, decode_unicode: bool = True) -> Iterator[Any]:
        """The lines of the body as they arrive: text, or with `decode_unicode=False` bytes.

        Args:
            chunk_size: accepted and ignored.
            decode_unicode: whether the lines are text.
        """
        for line in super().iter_lines():
            yield line if decode_unicode else line.encode(self.encoding or "utf-8")

    def iter_content(self, chunk_size: int | None = 1, decode_unicode: bool = False) -> Iterator[Any]:
        """The body as it arrives, in pieces of `chunk_size` bytes, or of any size."""
        return self.iter_text(chunk_size) if decode_unicode else self.iter_bytes(chunk_size)


class ReferenceResponse(_LikeRequests):
    """An `httpx.Response` that also has `ok`, `iter_content`, and `iter_lines` with the parameters of requests."""


class StreamedReferenceResponse(_LikeRequests, StreamedResponse):
    """The same for `post_stream`."""


def like_requests(response: Any) -> Any:
    """The same response, with the additions of `_LikeRequests`."""
    classes = {httpx.Response: ReferenceResponse, StreamedResponse: StreamedReferenceResponse}
    kind = classes.get(type(response))
    if kind is not None:
        response.__class__ = kind
    return response


def follow(transport: httpx.BaseTransport, response: httpx.Response) -> httpx.Response:
    """Follow the redirects from `response`; as in an httpx client, with one deadline for all hops.

    Raises:
        httpx.TooManyRedirects: there are too many.
    """
    if not response.has_redirect_location:
        return response
    client = httpx.Client(
        transport=_From(response, transport), follow_redirects=True, max_redirects=_MAX_REDIRECTS
    )
    # Do not close the client: the transport is not its own.
    return client.send(response.request, auth=httpx.Auth())


class _From(httpx.BaseTransport):
    """Answers the first request with a response that is already there, and sends the others."""

    def __init__(self, response: httpx.Response, transport: httpx.BaseTransport) -> None:
        self._first: httpx.Response | None = response
        self._transport = transport

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        first, self._first = self._first, None
        if first is not None:
            return first
        # Reads the body within the deadline, which httpx would not.
        return HttpClient(self._transport).send(request)
