"""The exceptions of stkai: docs/errors.md lists them. All survive pickling and copying, and hold no token or secret.

If a request gets no answer, the error is also an `httpx.TransportError`, with `.request`.
"""

import re
from collections.abc import Iterator
from typing import Any, Final, Self, TypeVar

import httpx

from ._lazy import LateModule

E = TypeVar("E", bound=Exception)

_pickle: Final = LateModule("pickle")

_WRAPPERS: Final = ("httpcore", "requests", "urllib3")
"""Packages that raise errors again without a cause, so that only the context is left."""

_MAX_CAUSES: Final = 16
"""Causes of an error that are inspected."""

_MAX_SHOWN: Final = 500
_CONTROL: Final = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


def digits(number: float, count: int = 3) -> str:
    """A number for a message, rounded to about `count` digits; large ones to integers: 0.583, 60, 86,400."""
    return f"{number:.{count}g}" if number < 999.5 else f"{number:,.0f}"


def visible(text: str) -> str:
    """Untrusted text on one line, cut to a readable length, with control characters escaped."""
    return escaped(text if len(text) <= _MAX_SHOWN else f"{text[:_MAX_SHOWN]}...")


def escaped(text: str) -> str:
    """The text with the characters that a terminal would interpret, such as line breaks, escaped."""
    return _CONTROL.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


class StkaiError(Exception):
    """Base class of everything that stkai itself raises."""

    def __reduce__(self) -> tuple[Any, ...]:
        state = {name: _portable(value) for name, value in self.__dict__.items()}
        return rebuilt, (type(self), self.args, state)

    def __copy__(self) -> Self:
        return rebuilt(type(self), self.args, self.__dict__)


def rebuilt(kind: type[E], args: tuple[Any, ...], state: dict[str, Any]) -> E:
    """An error with these arguments and attributes, without calling its constructor."""
    error = kind.__new__(kind, *args)
    error.args = args
    error.__dict__.update(state)
    return error


def _portable(value: object) -> object:
    """The value as it is pickled: itself, or a description in words if it cannot be.

    Many exceptions, such as `httpx.HTTPStatusError`, can be pickled but not unpickled, which crashes a process pool.
    """
    try:
        _pickle.loads(_pickle.dumps(value))
    except Exception:  # noqa: BLE001 - other people's classes may raise anything
        return StkaiError(describe(value)) if isinstance(value, BaseException) else None
    return value


def describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".removesuffix(": ")


def hide_frames(error: BaseException) -> None:
    """Drop the frames of the errors that caused this one.

    They belong to the wire, and their variables contain headers and bodies, which some traceback formatters print.
    """
    below = error.__cause__
    while below is not None and below.__traceback__ is not None:
        below.__traceback__ = None
        below = below.__cause__


def hide_secrets(error: BaseException, request: httpx.Request) -> None:
    """Drop the frames of an error and its causes, and replace the request that these and their responses refer to.

    The body or headers of that request are secret, but error trackers read it, and a pickle of the error contains it.
    """
    error.__traceback__ = None
    hide_frames(error)
    for below in causes(error):
        for holder in (below, getattr(below, "response", None)):
            if getattr(holder, "_request", None) is not None:
                holder.request = request  # type: ignore[union-attr] # httpx's errors, and its responses


def causes(error: BaseException) -> Iterator[BaseException]:
    """An error, and the errors that caused it.

    An error's `__context__` is whatever error the program was handling when it was raised, which need not be a cause.
    """
    below: BaseException | None = error
    for _ in range(_MAX_CAUSES):
        if below is None:
            return
        yield below
        # These packages' own errors, such as for bad URLs, are ValueErrors.
        is_raised_again = type(below).__module__.startswith(_WRAPPERS) and not isinstance(below, ValueError)
        below = below.__cause__ or (below.__context__ if is_raised_again else None)


def _forget_contents(error: BaseException) -> None:
    """Empty an error that contains the text or bytes that could not be read: those of a token source are secret."""
    if isinstance(error, UnicodeEncodeError | UnicodeDecodeError):
        error.object = type(error.object)()
        error.args = (error.encoding, error.object, *error.args[2:])
    elif hasattr(error, "doc"):  # json.JSONDecodeError, without importing json
        error.doc = ""


class NotSent(StkaiError):  # noqa: N818 - a public name
    """Raise it, or a subclass, inside a `permit()` block if nothing was sent: the permit is returned."""


class ConfigurationError(StkaiError, ValueError):
    """Settings, a stack or options that cannot be used; the message says what to change."""


def missing_extra(what: str, extra: str) -> ConfigurationError:
    """The error for a missing package that `what` needs."""
    return ConfigurationError(f'{what} needs a package that is not installed: pip install "stkai[{extra}]"')


class InvalidArgumentError(StkaiError, ValueError, AssertionError):
    """A bad argument of one call. An `AssertionError` for code written against stkai 0.4; raised under `-O` too."""


class TransportError(StkaiError, httpx.TransportError):
    """Base class of most errors of the transports: caught by `except httpx.HTTPError`; `.request` is the request."""


class AuthenticationError(TransportError):
    """There is no access token, or it may not be sent because the connection is not encrypted.

    Attributes:
        message: what failed.
        cause: the underlying exception, if any.
    """

    def __init__(
        self, message: str, cause: BaseException | None = None, *, request: httpx.Request | None = None
    ) -> None:
        super().__init__(message, request=request)
        self.message = message
        self.cause = cause
        if cause is not None:
            _forget_contents(cause)


class DeadlineExceededError(StkaiError, httpx.TimeoutException):
    """The call's total time ran out before there was an answer."""


class RetryableError(TransportError):
    """Another attempt may succeed; `Retrying` and the retry layer try again. Takes any arguments, like `Exception`."""

    def __init__(self, message: str = "", *more: object, request: httpx.Request | None = None) -> None:
        super().__init__(message, request=request)
        self.args += more


class ClientSideRateLimitError(RetryableError):
    """A limiter in this process rejected the request, so this attempt was not sent."""


class TokenAcquisitionTimeoutError(ClientSideRateLimitError):
    """The wait for a permit was, or would be, longer than allowed. The attempt was not sent, and took no permit.

    Earlier attempts of the call may have been sent; the note of the error counts them, and this one.

    Attributes:
        waited: seconds waited before giving up (0 if refused at once).
        max_wait_time: seconds that the request was allowed to wait.
        required: seconds that it would have had to wait in total.
        retry_after: seconds after which a wait within `max_wait_time` would be enough.
    """

    def __init__(
        self,
        waited: float,
        max_wait_time: float,
        *,
        required: float | None = None,
        request: httpx.Request | None = None,
    ) -> None:
        self.waited = waited
        self.max_wait_time = max_wait_time
        self.required = waited if required is None else required
        self.retry_after = max(0.0, self.required - max_wait_time)
        super().__init__(
            f"no permit within {max_wait_time:g} s: it would have taken {digits(self.required)} s"
            f" (waited {digits(waited)} s); try again in {digits(self.retry_after)} s, or raise max_wait_time",
            request=request,
        )


class ServerSideRateLimitError(RetryableError):
    """The server answered 429 Too Many Requests.

    Attributes:
        response: the response; its body can be read.
    """

    def __init__(
        self, response: Any, message: str | None = None, *, request: httpx.Request | None = None
    ) -> None:
        self.response = response
        super().__init__(message or "the server answered 429 Too Many Requests", request=request)


class OutcomeUnknownError(StkaiError):
    """The request was in flight when an earlier run ended; the server may have acted on it. It was not sent again."""


class MaxRetriesExceededError(StkaiError):
    """`Retrying` has used all its attempts.

    Attributes:
        last_exception: what the last attempt raised.
    """

    def __init__(self, message: str, last_exception: BaseException | None = None) -> None:
        super().__init__(message)
        self.last_exception = last_exception
