"""stkai's limiters, and what you need to write your own."""

from .transports._limits.all_of import AllOf
from .transports._limits.in_flight import InFlight
from .transports._limits.limiter import Answer, Limiter, RateChange, Turn
from .transports._limits.per_key import PerHost, PerKey
from .transports._limits.quota_limiters import AimdLimiter, TokenBucket

__all__ = [
    "AimdLimiter",
    "AllOf",
    "Answer",
    "InFlight",
    "Limiter",
    "PerHost",
    "PerKey",
    "RateChange",
    "TokenBucket",
    "Turn",
]
__dir__ = __all__.copy
