"""One fetch of a token, on which everybody waits who needs it: threads, the tasks of an event loop, and both."""

import copy
import math
import threading
from contextvars import copy_context
from typing import TYPE_CHECKING

from ..._errors import AuthenticationError, DeadlineExceededError

if TYPE_CHECKING:
    from ..._credentials.client_credentials import AuthProvider


class Outcome:
    """What a fetch came to. Whoever leads it fills in `token` or `error`.

    Attributes:
        token: what was fetched.
        error: why nothing was.
    """

    def __init__(self) -> None:
        self.token: str | None = None
        self.error: AuthenticationError | None = None

    def take(self) -> str | None:
        """The token; None if the leader was interrupted, so that somebody else must lead.

        Raises:
            AuthenticationError: a copy for each, since each carries the request that it failed.
        """
        if self.error is not None:
            raise copy.copy(self.error) from self.error.cause
        return self.token


class Renewal(Outcome):
    """A fetch in progress, and `done`, on which threads wait; whoever leads it sets that, whatever happens."""

    def __init__(self) -> None:
        super().__init__()
        self.done = threading.Event()


def get_token(provider: "AuthProvider", seconds: float) -> str:
    """A token from the provider, for a thread that can wait no longer than `seconds`.

    Raises:
        AuthenticationError: whatever the provider raised.
        DeadlineExceededError: it takes longer. The fetch goes on, for those who come later.
    """
    if seconds == math.inf:
        return _ask(provider)
    if seconds <= 0:
        raise _too_late()
    # A blocking call cannot be given up, but the wait for it can.
    renewal = Renewal()
    thread = threading.Thread(target=copy_context().run, args=(_fill, renewal, provider), daemon=True)
    thread.start()
    renewal.done.wait(min(seconds, threading.TIMEOUT_MAX))
    token = renewal.take()
    if token is None:
        raise _too_late()
    return token


def _fill(renewal: Renewal, provider: "AuthProvider") -> None:
    try:
        renewal.token = _ask(provider)
    except AuthenticationError as error:
        renewal.error = error
    finally:
        renewal.done.set()


def _ask(provider: "AuthProvider") -> str:
    try:
        return provider.get_access_token()
    except AuthenticationError:
        raise
    except Exception as error:
        raise _failed(provider, error) from error


class TaskRenewals:
    """Lets the tasks of an event loop wait together, without a thread each; every loop has its own renewal."""

    def __init__(self) -> None:
        # By thread: one runs no more than one event loop at a time, and what wakes a task belongs to its loop.
        self._running: dict[int, _TaskRenewal] = {}

    def __bool__(self) -> bool:
        """Whether somebody is fetching a token."""
        return bool(self._running)

    async def get_token(self, provider: "AuthProvider", seconds: float) -> str:
        """A token from the provider, for a task that can wait no longer than `seconds`.

        Raises:
            AuthenticationError: whatever the provider raised.
            DeadlineExceededError: it takes longer.
        """
        import anyio

        if seconds <= 0:
            raise _too_late()
        with anyio.move_on_after(seconds):
            return await self._get_token(provider)
        raise _too_late()

    async def _get_token(self, provider: "AuthProvider") -> str:
        thread = threading.get_ident()
        while (running := self._running.get(thread)) is not None:
            await running.done.wait()
            token = running.take()
            if token is not None:
                return token
        renewal = self._running[thread] = _TaskRenewal()
        try:
            renewal.token = await _aask(provider)
        except AuthenticationError as error:
            renewal.error = error
            raise
        finally:  # Cancelled, too: the first of those who wait takes over.
            del self._running[thread]
            renewal.done.set()
        return renewal.token


class _TaskRenewal(Outcome):
    """The same for the tasks of one event loop."""

    def __init__(self) -> None:
        import anyio

        super().__init__()
        self.done = anyio.Event()


async def _aask(provider: "AuthProvider") -> str:
    try:
        return await provider.aget_access_token()
    except AuthenticationError:
        raise
    except Exception as error:
        raise _failed(provider, error) from error


def _failed(provider: "AuthProvider", error: Exception) -> AuthenticationError:
    msg = f"{type(provider).__name__} could not get a token: {type(error).__name__}: {error}"
    return AuthenticationError(msg, error)


def _too_late() -> DeadlineExceededError:
    return DeadlineExceededError("the call's deadline passed while it waited for an access token")
