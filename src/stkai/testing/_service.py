"""StackSpot AI's endpoints and quota, and a model behind OpenAI's API: requests in, replies out.

Does no I/O. A quota is counted in one of three ways; its `max_requests` may be changed at any time.
"""

import json
import math
import re
from base64 import b64decode
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from email.utils import formatdate
from itertools import count
from typing import Any, Final, Literal
from urllib.parse import parse_qs, unquote_plus
from weakref import WeakKeyDictionary

from .._checks import POSITIVE_SECONDS, Numbers, check_number
from .._clock import Clock, unique_key
from ._replies import (
    Answer,
    Fault,
    Reply,
    RequestRecord,
    completion,
    error_reply,
    event_stream,
    json_reply,
    words_of,
)

API: Final = "/v1"  # The start of the paths that need a token, and that latency applies to.

TOKEN_PATH: Final = "/oidc/oauth/token"  # noqa: S105

Handler = Callable[[RequestRecord, str], Reply]

RetryAfter = Literal["true", "date"] | float | None

_AT_LEAST_ONE: Final = Numbers("at least 1", 1)

_EPSILON: Final = 1e-9  # Permits; a client that waits exactly as long as the 429 says must be admitted.


class ServerQuota:
    """One quota, shared by all clients of the server. Refused requests do not use it."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        check_number("max_requests", max_requests, _AT_LEAST_ONE)
        check_number("time_window", time_window, POSITIVE_SECONDS)
        self.max_requests, self.time_window = max_requests, time_window

    def admit(self, now: float) -> float:
        """Count a request that arrives at `now`; returns 0.0 if accepted, otherwise the seconds until one would be."""
        raise NotImplementedError


class FixedWindow(ServerQuota):
    """A counter per window; windows start at multiples of `time_window`."""

    _window, _used = -math.inf, 0

    def admit(self, now: float) -> float:
        self._enter_window(now)
        if self._used >= self.max_requests:
            return self.reset_in(now)
        self._used += 1
        return 0.0

    def remaining(self, now: float) -> int:
        """The number of requests that the current window still accepts."""
        self._enter_window(now)
        return max(0, self.max_requests - self._used)

    def reset_in(self, now: float) -> float:
        """Seconds until the next window starts."""
        return self.time_window - now % self.time_window

    def _enter_window(self, now: float) -> None:
        window = now // self.time_window
        if window != self._window:
            self._window, self._used = window, 0


class SlidingWindow(ServerQuota):
    """A log of the accepted requests: no `time_window`, wherever it starts, contains more than `max_requests`."""

    def __init__(self, max_requests: int, time_window: float) -> None:
        super().__init__(max_requests, time_window)
        self._expiries: deque[float] = deque()

    def admit(self, now: float) -> float:
        while self._expiries and self._expiries[0] <= now:
            self._expiries.popleft()
        if len(self._expiries) >= self.max_requests:
            return self._expiries[-self.max_requests] - now
        self._expiries.append(now + self.time_window)
        return 0.0


class Bucket(ServerQuota):
    """A token bucket: `depth` requests at once, refilled at `max_requests / time_window` per second; starts full."""

    def __init__(self, max_requests: int, time_window: float, *, depth: float = 10.0) -> None:
        super().__init__(max_requests, time_window)
        check_number("depth", depth, _AT_LEAST_ONE)
        self.depth = depth
        self._level = depth
        self._updated = -math.inf

    def admit(self, now: float) -> float:
        rate = self.max_requests / self.time_window
        self._level = min(self.depth, self._level + (now - self._updated) * rate)
        self._updated = now
        if self._level >= 1 - _EPSILON:
            self._level -= 1
            return 0.0
        return (1 - self._level) / rate


def refusal(quota: ServerQuota | None, retry_after: RetryAfter, now: float, utcnow: datetime) -> Reply | None:
    """Count a request that arrives now; returns the 429 if it is one too many, otherwise None."""
    wait = 0.0 if quota is None else quota.admit(now)
    if not wait:
        return None
    value = f"{retry_after:g}" if isinstance(retry_after, int | float) else str(math.ceil(wait))
    if retry_after == "date":
        value = formatdate(math.ceil(utcnow.timestamp() + wait), usegmt=True)
    headers = () if retry_after is None else (("retry-after", value),)
    return error_reply(429, "too_many_requests", "the quota is used up; see Retry-After", headers)


@dataclass(kw_only=True)
class Service:
    """The endpoints, and the server's state, which outlives a restart. For the arguments, see `QuotaServer`."""

    quota: ServerQuota | None
    retry_after: RetryAfter
    latency: tuple[float, float]
    auth_required: bool
    client_id: str
    client_secret: str
    token_lifetime: float
    polls_until_done: int
    clock: Clock

    def __post_init__(self) -> None:
        self.log: list[RequestRecord] = []
        self.faults: list[tuple[str, Fault]] = []
        """Queued faults, each with the start of the paths that it applies to."""
        self._connections: WeakKeyDictionary[object, int] = WeakKeyDictionary()
        self._numbers = count(1)
        self.tokens: dict[str, float] = {}  # When each expires.
        self._executions: dict[str, tuple[int, Any]] = {}
        self.routes: list[tuple[str, str, bool, Handler]] = [
            ("POST", f"{TOKEN_PATH}()", False, self._issue_token),
            ("POST", f"{API}/quick-commands/create-execution/([^/]+)", True, self._create_execution),
            ("GET", f"{API}/quick-commands/callback/([^/]+)", False, self._poll),
            ("POST", f"{API}/agent/([^/]+)/chat", True, chat(_agent)),
            ("POST", f"{API}/chat/completions()", True, chat(completion)),
            ("", "/echo()", False, _echo),
        ]
        """Method, path (a pattern, whose group is passed to the handler), whether requests are counted, and handler."""

    def number_of(self, connection: object) -> int:
        """The number of a connection, from 1."""
        if connection not in self._connections:
            self._connections[connection] = next(self._numbers)
        return self._connections[connection]

    def fault_for(self, path: str) -> Fault:
        """Take the next fault for a path. Only the server's thread takes faults; others may add some."""
        for index, (prefix, fault) in enumerate(self.faults):
            if path.startswith(prefix):
                del self.faults[index]
                return fault
        return Fault()

    def reply(self, request: RequestRecord, fault: Fault) -> Reply:
        """The answer; its `Date` is the time of this server's clock."""
        utcnow = self.clock.utcnow()
        reply = fault.reply() if isinstance(fault, Answer) else self._answer(request, utcnow)
        return fault.apply(reply).with_default("date", formatdate(utcnow.timestamp(), usegmt=True))

    def _answer(self, request: RequestRecord, utcnow: datetime) -> Reply:
        if request.path.startswith(API) and not self._is_authorized(request):
            challenge = (("www-authenticate", 'Bearer realm="stkai.testing", error="invalid_token"'),)
            return error_reply(
                401, "invalid_token", "the access token is missing, expired or revoked", challenge
            )
        for method, pattern, counted, handler in self.routes:
            match = re.fullmatch(pattern, request.path)
            if match is None:
                continue
            if method not in ("", request.method):
                return error_reply(405, "method_not_allowed", f"use {method}", (("allow", method),))
            now = self.clock.monotonic()
            refused = refusal(self.quota, self.retry_after, now, utcnow) if counted else None
            return refused or handler(request, match[1])
        return error_reply(404, "not_found", f"there is nothing at {request.path}")

    def _is_authorized(self, request: RequestRecord) -> bool:
        scheme, _, token = (request.authorization or "").partition(" ")
        now = self.clock.monotonic()
        is_valid = scheme.lower() == "bearer" and self.tokens.get(token, now) > now
        return is_valid or not self.auth_required

    def _issue_token(self, request: RequestRecord, _: str) -> Reply:
        """The client credentials grant of RFC 6749, section 4.4."""
        form = parse_qs(request.body.decode(errors="replace"))
        given = (form.get("client_id", [""])[0], form.get("client_secret", [""])[0])
        scheme, _, pair = (request.authorization or "").partition(" ")
        if scheme.lower() == "basic":  # RFC 6749, section 2.3.1
            with suppress(ValueError):
                name, _, secret = b64decode(pair).decode().partition(":")
                given = unquote_plus(name), unquote_plus(secret)
        if form.get("grant_type") != ["client_credentials"]:
            return error_reply(400, "unsupported_grant_type", "grant_type must be client_credentials")
        if given != (self.client_id, self.client_secret):
            return error_reply(401, "invalid_client", "unknown client_id, or wrong client_secret")
        token = unique_key()
        self.tokens[token] = self.clock.monotonic() + self.token_lifetime
        content = {"access_token": token, "token_type": "Bearer", "expires_in": self.token_lifetime}
        return json_reply(content, headers=(("cache-control", "no-store"),))

    def _create_execution(self, request: RequestRecord, _: str) -> Reply:
        execution_id = unique_key()
        self._executions[execution_id] = (self.polls_until_done, _json(request).get("input_data"))
        return json_reply(execution_id)

    def _poll(self, request: RequestRecord, execution_id: str) -> Reply:
        if execution_id not in self._executions:
            return error_reply(404, "not_found", f"no execution has the id {execution_id}")
        polls_left, result = self._executions[execution_id]
        self._executions[execution_id] = (max(0, polls_left - 1), result)
        is_done = polls_left == 0
        progress = {
            "status": "COMPLETED" if is_done else "RUNNING",
            "execution_percentage": 1.0 if is_done else 1 - polls_left / (self.polls_until_done + 1),
        }
        content = {"execution_id": execution_id, "progress": progress, "result": result if is_done else None}
        return json_reply(content)


def _echo(request: RequestRecord, *_: object) -> Reply:
    return json_reply(
        {
            "method": request.method,
            "path": request.path,
            "query": request.query,
            "headers": request.headers,
            "body": request.body.decode(errors="replace"),
        }
    )


def _json(request: RequestRecord) -> dict[str, Any]:
    """The JSON object in a body; empty for anything else, since the client is under test, not this service."""
    try:
        content = json.loads(request.body)
    except (ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def chat(reply: Callable[[dict[str, Any]], Reply]) -> Handler:
    """A handler that answers the JSON of a request."""
    return lambda request, *_: reply(_json(request))


def _agent(asked: dict[str, Any]) -> Reply:
    """The answer of `/agent/{id}/chat`, as in StackSpot AI."""
    prompt = str(asked.get("user_prompt", ""))
    words = words_of(prompt)
    end = {"stop_reason": "stop", "tokens": {"user": len(words), "enrichment": 0, "output": len(words)}}
    if not asked.get("streaming"):
        return json_reply({"message": prompt, **end})
    events: list[dict[str, Any]] = [*({"message": word} for word in words), {"message": "", **end}]
    return event_stream(events)
