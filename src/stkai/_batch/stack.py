"""The stack of a batch: the one from `build_async_client()`, with the journal inside all other layers."""

from dataclasses import replace

import httpx

from .._builder import StackBuilder
from .._client import AsyncHttpClient
from .._config.stkai import STKAI
from .._errors import ConfigurationError
from .._standard import Parts
from ..transports._auth.bearer import BearerAuth, ExposedTokenError
from ..transports._retry.policy import RetryPolicy
from .errors import UsageError
from .intents import Intents
from .options import Options


def build_client(options: Options, intents: Intents) -> AsyncHttpClient:
    """The client that sends the lines.

    Raises:
        UsageError: the settings are invalid, or do not mention authentication.
    """
    try:
        settings = STKAI.config
        config = settings.retry
        policy = None
        if config.enabled:
            policy = RetryPolicy(**config.model_dump(exclude={"enabled"}))
            if options.unknown == "report":
                policy = replace(policy, retry_unknown=False)
        # Enough connections for all requests in flight, unless the settings ask for fewer.
        chosen, most = settings.http.model_fields_set, options.max_in_flight
        wanted = {
            name: most
            for name in ("max_connections", "max_keepalive_connections")
            if name not in chosen and (getattr(settings.http, name) or most) < most
        }
        settings = settings.model_copy(update={"http": settings.http.model_copy(update=wanted)})
        parts = Parts.choose(settings, auth=None if options.no_auth else "auto", retry=policy, own_wire=True)
        _check_base(options, parts)
        stack = StackBuilder(parts.layers).layer(intents.layer())
        return AsyncHttpClient(stack.build_async(parts.make_async_wire()))
    except (ConfigurationError, ExposedTokenError) as error:
        hint = (
            "" if options.no_auth else "\n  - on the command line: --no-auth, for an API that needs no token"
        )
        raise UsageError(f"{error}{hint}") from error


def _check_base(options: Options, parts: Parts) -> None:
    """Fail early if the token may not be sent to `--base-url`.

    Raises:
        ExposedTokenError: it would travel unencrypted.
    """
    for layer in parts.layers:
        bearer = layer.policy
        if isinstance(bearer, BearerAuth) and bearer.origins is None and options.base_url is not None:
            bearer.require_private(httpx.URL(options.base_url))
