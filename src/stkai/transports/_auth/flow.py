"""Signs requests with a bearer token, only for the origins that may see it, and renews a refused token.

An httpx client follows redirects above all layers, so every hop passes through this one: the token does not leak, even
if a server redirects to another origin.
"""

from functools import partial
from traceback import clear_frames
from typing import Any, Final

import httpx

from ..._errors import DeadlineExceededError, hide_frames
from ..._families import alike
from ..._process import raise_interrupt
from ...events import TokenRenewed
from .._bodies import can_resend, exceeds
from .._call import Attempt, SignatureExpired
from .._context import Context
from .._layer_transport import AsyncLayerTransport, LayerBase, LayerTransport
from .._operations import Close, Drain, Flow, Load, Run, Steps
from .._recipe import Layer, recipe
from .._redirect_chain import UNAUTHORIZED
from . import AuthProvider, aget_token, get_token, too_late
from .bearer import BearerAuth, Token

_NONE: Final = "none was valid"
_REFUSED: Final = "the server refused the old one"

_MAX_BODY: Final = 1_048_576
"""The maximum bytes of a 401's body to keep while the token is renewed. A body known to be longer is read only once it
is clear that the caller gets it."""


class _AuthFlow(LayerBase):
    """The layer `auth`, for both drivers."""

    name = "auth"

    def __init__(
        self, inner: Any, policy: BearerAuth | AuthProvider, *, context: Context | None = None
    ) -> None:
        super().__init__(inner, context=context)
        self.policy = _bearer(policy)

    def flow(self, request: httpx.Request, attempt: Attempt) -> Flow:
        policy = self.policy
        if not policy.may_sign(request.url, attempt):
            return (yield from self._onward(request, attempt))
        token = policy.cached()
        if token is None:
            token = yield from self.fetch(attempt, _NONE)
        renewed, checks, queued, took = False, True, 0.0, 0.0
        while True:
            attempt.is_signed = token if checks else None
            try:
                response = yield from self._onward(policy.sign(request, token), attempt)
            except SignatureExpired:
                # Send with any token if the wait for a permit was shorter than the wait for the previous token: if
                # fetching a token takes longer than it is valid, the request might never be sent.
                record = attempt.record
                checks, queued, before = record.queued - queued > took, record.queued, record.authenticating
                token = policy.cached() or (yield from self.fetch(attempt, _NONE))
                took = record.authenticating - before
                continue
            except BaseException as error:
                if isinstance(error, alike(httpx.RequestError)):
                    hide_frames(error)
                else:  # Such as an interrupt while the wire was sending the token.
                    clear_frames(error.__traceback__)
                raise
            finally:
                attempt.is_signed = None
            response.request = request
            if response.status_code != UNAUTHORIZED or renewed:
                return response
            try:
                token = yield from self._replacement(request, response, token, attempt)
            except BaseException:
                yield Close(response)
                raise
            if token is None:
                return response
            yield Drain(response)
            attempt, renewed = attempt.again(), True

    def _replacement(
        self, request: httpx.Request, response: httpx.Response, refused: Token, attempt: Attempt
    ) -> Steps[Token | None]:
        """A token that replaces the refused one, or None if another attempt could not help."""
        self.policy.forget(refused)
        if not can_resend(request):
            return None
        token, broken = self.policy.cached(), None
        if token is None:
            try:
                # First return the connection, which the renewal may need.
                if not exceeds(response, _MAX_BODY):
                    yield Load(response, _MAX_BODY, brief=True)
            except Exception as error:
                raise_interrupt(error)
                if isinstance(error, DeadlineExceededError):
                    raise
                broken = error  # The body is not needed if there is another token.
            token = yield from self.fetch(attempt, _REFUSED)
        if token.value != refused.value:
            return token
        if broken is not None:
            raise broken
        return None

    def fetch(self, attempt: Attempt, reason: str) -> Steps[Token]:
        """A token from the provider; emits an event if it is a new one."""
        start = self.context.now()
        try:
            token: Token = yield Run(
                partial(_get, self.policy, attempt), partial(_aget, self.policy, attempt)
            )
        except DeadlineExceededError:  # On an event loop it is the driver's, about the server.
            raise too_late() from None
        finally:
            seconds = self.context.now() - start
            attempt.record.authenticating += seconds
        if token.claim_event():
            self.context.emit(TokenRenewed(call=attempt.info, seconds=seconds, reason=reason))
        return token


# The drivers keep results in variables, which tracebacks show: return a `Token`, never its text.


def _get(policy: BearerAuth, attempt: Attempt, seconds: float) -> Token:
    return policy.token(get_token(policy.provider, seconds, attempt.closing))


async def _aget(policy: BearerAuth, attempt: Attempt, seconds: float) -> Token:
    return policy.token(await aget_token(policy.provider, seconds, attempt.closing))


class AuthTransport(_AuthFlow, LayerTransport):
    """Sends with a valid token; after a 401, renews it and sends once more.

    Args:
        inner: the next layer, or the wire.
        policy: a token provider, or a `BearerAuth` that says which origins may see its tokens.
        context: the stack's clock, random numbers and listener.

    Raises:
        ConfigurationError: `policy` is neither.
        AuthenticationError: (per request) there is no token, or it may not be sent.
    """


class AsyncAuthTransport(_AuthFlow, AsyncLayerTransport):
    """The same as `AuthTransport`, for async clients; a sync-only provider runs in a worker thread."""


def auth(policy: BearerAuth | AuthProvider) -> Layer:
    """The layer `auth`, for a `StackBuilder`."""
    return recipe(AuthTransport, AsyncAuthTransport, _bearer(policy))


def _bearer(policy: BearerAuth | AuthProvider) -> BearerAuth:
    return policy if isinstance(policy, BearerAuth) else BearerAuth(policy)
