"""Limiters: those of stkai, and what a limiter of your own needs."""

from .transports._adaptive.limiter import AimdLimiter
from .transports._limit.limiter import Answer, Limiter, RateChange, Turn
from .transports._limit.per_host import PerHost
from .transports._limit.token_bucket import TokenBucket

__all__ = ["AimdLimiter", "Answer", "Limiter", "PerHost", "RateChange", "TokenBucket", "Turn"]
