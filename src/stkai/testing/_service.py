"""What StackSpot AI answers: requests in, replies out. Does no I/O, and gets the time as an argument."""

import base64
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from urllib.parse import parse_qs

from .._clock import unique_key
from . import _chats
from ._quota import Gate
from ._requests_and_replies import Reply, RequestRecord, error_reply, json_reply

API = "/v1"
APIS = (API, "/v2", "/openai/v1")
"""Where tokens and latency count; the others are Cohere's and Groq's."""

TOKEN_PATH = "/oidc/oauth/token"  # noqa: S105

Handler = Callable[[RequestRecord, str, float], Reply]


@dataclass(kw_only=True)
class Service:
    """The endpoints, their tokens and their executions.

    Attributes:
        gate: counts the requests.
        token_lifetime: seconds for which a token is accepted.
        polls_until_done: how many polls of an execution answer RUNNING.
        stream_interval: seconds between the events of a streamed chat.
    """

    gate: Gate
    client_id: str
    client_secret: str
    auth_required: bool
    token_lifetime: float
    polls_until_done: int
    stream_interval: float

    def __post_init__(self) -> None:
        self._tokens: dict[str, float] = {}
        self._executions: dict[str, tuple[int, Any]] = {}
        self._routes: tuple[tuple[str, str, bool, Handler], ...] = (
            ("POST", f"{TOKEN_PATH}()", False, self._issue_token),
            ("POST", f"{API}/quick-commands/create-execution/([^/]+)", True, self._create_execution),
            ("GET", f"{API}/quick-commands/callback/([^/]+)", False, self._poll),
            ("POST", f"{API}/agent/([^/]+)/chat", True, self._chat(_chats.agent)),
            ("POST", f"(?:/openai)?{API}/chat/completions()", True, self._chat(_chats.completion)),
            ("POST", f"{API}/messages()", True, self._chat(_chats.message)),
            ("POST", "/v2/chat()", True, self._chat(_chats.chat)),
            ("", "/echo()", False, _echo),
            ("", "/status/([0-9]+)", False, _status),
        )
        """Methods, paths with what the handler needs of them, whether they are counted, and handlers."""

    def revoke_tokens(self) -> None:
        """Refuse every token issued so far."""
        self._tokens.clear()

    def answer(self, request: RequestRecord, now: float, utcnow: datetime) -> Reply:
        """Answer a request; `now` never goes back."""
        if request.path.startswith(APIS) and not self._is_authorized(request, now):
            challenge = (("www-authenticate", 'Bearer realm="stkai.testing", error="invalid_token"'),)
            return error_reply(
                401, "invalid_token", "the access token is missing, expired or revoked", challenge
            )
        for method, pattern, counted, handler in self._routes:
            match = re.fullmatch(pattern, request.path)
            if match is None:
                continue
            if method not in ("", request.method):
                return error_reply(405, "method_not_allowed", f"use {method}", (("allow", method),))
            if not counted:
                return handler(request, match[1], now)
            refused = self.gate.refuse(now, utcnow)
            return refused or handler(request, match[1], now).with_headers(self.gate.headers(now, utcnow))
        return error_reply(404, "not_found", f"there is nothing at {request.path}")

    def _is_authorized(self, request: RequestRecord, now: float) -> bool:
        scheme, _, token = (request.authorization or "").partition(" ")
        is_valid = scheme.lower() == "bearer" and self._tokens.get(token, now) > now
        return is_valid or not self.auth_required

    def _issue_token(self, request: RequestRecord, _: str, now: float) -> Reply:
        """The client credentials grant of RFC 6749, section 4.4."""
        form = parse_qs(request.body.decode(errors="replace"))
        given = (form.get("client_id", [""])[0], form.get("client_secret", [""])[0])
        if form.get("grant_type") != ["client_credentials"]:
            return error_reply(400, "unsupported_grant_type", "grant_type must be client_credentials")
        if given != (self.client_id, self.client_secret):
            return error_reply(401, "invalid_client", "unknown client_id, or wrong client_secret")
        token = unique_key()
        self._tokens[token] = now + self.token_lifetime
        content = {"access_token": token, "token_type": "Bearer", "expires_in": self.token_lifetime}
        return json_reply(content, headers=(("cache-control", "no-store"),))

    def _chat(self, reply: Callable[[dict[str, Any], float], Reply]) -> Handler:
        return lambda request, *_: reply(_json(request), self.stream_interval)

    def _create_execution(self, request: RequestRecord, slug: str, _: float) -> Reply:
        execution_id = unique_key()
        self._executions[execution_id] = (self.polls_until_done, _json(request).get("input_data"))
        return json_reply(execution_id)

    def _poll(self, request: RequestRecord, execution_id: str, _: float) -> Reply:
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
    try:
        body, encoding = request.body.decode(), "text"
    except UnicodeDecodeError:
        body, encoding = base64.b64encode(request.body).decode(), "base64"
    content = {
        "method": request.method,
        "path": request.path,
        "query": request.query,
        "headers": request.headers,
        "body": body,
        "body_encoding": encoding,
    }
    return json_reply(content)


def _status(request: RequestRecord, code: str, _: float) -> Reply:
    status = int(code)
    if not 200 <= status <= 599:
        return error_reply(
            400, "invalid_request", f"{status} cannot be answered: choose a status from 200 to 599"
        )
    location = parse_qs(request.query).get("location", [])
    headers = tuple(("location", value) for value in location)
    return json_reply({"status": status}, status=status, headers=headers)


def _json(request: RequestRecord) -> dict[str, Any]:
    """The JSON object in a body, or an empty one: the client is under test, not this service."""
    try:
        content = json.loads(request.body)
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}
