"""The strategies that are compared: each builds the transport through which one process sends."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import httpx

from stkai import AimdLimiter, TokenBucket, build_async_transport

from .concurrency import ConcurrencyTransport
from .cubic import CubicTransport
from .original import OriginalTransport
from .site import RETRY, Site


@dataclass(frozen=True, slots=True)
class Strategy:
    """A name, and how to build the stack of one process; `build` must be picklable, to run in another process."""

    name: str
    build: Callable[[Site], httpx.AsyncBaseTransport]

    def __str__(self) -> str:
        return self.name


def build_stack(site: Site, limiter: TokenBucket | AimdLimiter | None) -> httpx.AsyncBaseTransport:
    """The standard stack around the simulated server, with the site's time and randomness."""
    return build_async_transport(
        auth=None,
        rate_limit=limiter,
        retry=RETRY,
        transport=site.wire,
        clock=site.clock,
        random=site.random.random,
        listener=_ignore,
    )


def _ignore(event: object) -> None:
    """Discard events: a simulation has no listener."""


def _no_limiter(site: Site) -> httpx.AsyncBaseTransport:
    return build_stack(site, None)


def _fixed_share(site: Site) -> httpx.AsyncBaseTransport:
    """A bucket of quota/N: correct if N is known and all N processes have work."""
    scenario = site.scenario
    share = scenario.quota / scenario.processes
    return build_stack(site, TokenBucket(share, scenario.window, burst=1, max_wait_time=None))


def _adaptive(site: Site) -> httpx.AsyncBaseTransport:
    # The backlog is endless: a limit to the wait would only turn waiting requests into failed ones.
    scenario = site.scenario
    if scenario.told is None:
        return build_stack(site, AimdLimiter())
    quota, window = (scenario.quota, scenario.window) if scenario.told is True else scenario.told
    return build_stack(site, AimdLimiter(quota, window))


def _shared(site: Site) -> httpx.AsyncBaseTransport:
    scenario = site.scenario
    return build_stack(
        site, AimdLimiter(scenario.quota, scenario.window, share="simulated", store=site.store)
    )


def _half_shared(site: Site) -> httpx.AsyncBaseTransport:
    """The second half of the processes share; the first uses the same key without sharing."""
    strangers = site.scenario.processes // 2
    return _adaptive(site) if site.number < strangers else _shared(site)


def _original(site: Site, *, floor: float, penalty: float, recovery: float) -> httpx.AsyncBaseTransport:
    return OriginalTransport(site, floor=floor, penalty=penalty, recovery=recovery)


def _botocore(site: Site) -> httpx.AsyncBaseTransport:
    # The retries around it are stkai's, which honour `Retry-After`: botocore's own do not, and would fare worse here.
    return build_stack(replace(site, wire=CubicTransport(site)), None)


def _concurrency(site: Site) -> httpx.AsyncBaseTransport:
    return build_stack(replace(site, wire=ConcurrencyTransport(site)), None)


NO_LIMITER = Strategy("no limiter", _no_limiter)
FIXED_SHARE = Strategy("bucket of quota/N", _fixed_share)
BALANCED = Strategy("0.4.18 balanced", partial(_original, floor=0.1, penalty=0.3, recovery=0.05))
CONSERVATIVE = Strategy("0.4.18 conservative", partial(_original, floor=0.05, penalty=0.5, recovery=0.02))
BOTOCORE = Strategy("botocore adaptive", _botocore)
ADAPTIVE = Strategy("adaptive", _adaptive)
CONCURRENCY = Strategy("limit on what is in flight", _concurrency)
SHARED = Strategy("adaptive, shared", _shared)
HALF_SHARED = Strategy("adaptive, half of them shared", _half_shared)

ALL = (NO_LIMITER, FIXED_SHARE, BALANCED, CONSERVATIVE, BOTOCORE, ADAPTIVE, SHARED)
