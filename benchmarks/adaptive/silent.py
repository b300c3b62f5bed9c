"""Goals for servers that never say how long to wait, as nginx, HAProxy and `limit_conn` are.

Those that real servers are measured on as well, and others, which no constant was tuned on.
"""

from dataclasses import replace
from typing import Any

from .bounds import Goal, failed, goodput, jain, means, refused
from .scenario import Scenario

_NEAR: dict[str, Any] = {"retry_after": None, "network": (0.0005, 0.0015), "service": (0.001, 0.002)}
"""A server on the same machine or in the same rack: then it is the limiter that decides what is used."""

_EACH_SECOND: dict[str, Any] = {"quota": 20, "window": 1.0, "windows": 60, "cold": 10, "told": None, **_NEAR}
_EACH_MINUTE: dict[str, Any] = {"quota": 100, "window": 60.0, "windows": 3, "cold": 1, "told": None, **_NEAR}
_BUSY: dict[str, Any] = {
    "window": 1.0,
    "windows": 60,
    "cold": 10,
    "told": None,
    **_NEAR,
    "service": (0.19, 0.21),
}

_BURST = Scenario(server="leaky", burst=5, processes=4, workers=4, **_EACH_SECOND)
_BURST_ALONE = Scenario(server="leaky", burst=5, processes=1, workers=8, **_EACH_SECOND)
_STRICT = Scenario(server="leaky", processes=4, workers=4, **_EACH_SECOND)
_STRICT_ALONE = Scenario(server="leaky", processes=1, workers=8, **_EACH_SECOND)
_DELAYED = Scenario(server="delaying", burst=20, processes=1, workers=64, **_EACH_SECOND)
_MINUTE = Scenario(server="leaky", burst=10, processes=4, workers=4, **_EACH_MINUTE)
_SLOTS = Scenario(in_flight=8, processes=4, workers=8, **_BUSY)
_SLOTS_ALONE = Scenario(in_flight=8, processes=1, workers=32, **_BUSY)

_OTHERS: dict[str, Any] = {"windows": 60, "cold": 10, "told": None, "workers": 6, **_NEAR}
_OTHER_BURSTS = [
    Scenario(server="leaky", burst=burst, quota=quota, window=1.0, processes=number, **_OTHERS)
    for quota, burst in ((33, 8), (10, 3))
    for number in (1, 3)
]
_SLOW_ANSWERS = [
    replace(_BURST, service=(0.8, 1.2), workers=14),
    replace(_BURST, quota=5, service=(2.4, 3.6), workers=12, windows=120, cold=20),
    replace(_MINUTE, service=(2.4, 3.6), workers=8),
]
_SLOW_WINDOWS = [
    replace(_MINUTE, server="fixed", windows=4, service=(0.08, 0.12)),
    replace(_MINUTE, server="fixed", windows=4, service=(2.4, 3.6), workers=6),
    replace(
        _BURST, server="fixed", quota=100, window=10.0, windows=12, cold=2, service=(0.08, 0.12), workers=9
    ),
]
_LATE_WINDOWS = [
    replace(_SLOW_WINDOWS[2], quota=quota, window=window, windows=windows, cold=cold, late=2, workers=6)
    for quota, window, windows, cold in ((50, 5.0, 120, 80), (100, 10.0, 60, 40), (300, 30.0, 20, 14))
]
_SLOW_STRICT = replace(_STRICT, service=(0.8, 1.2), workers=14)
_OTHER_STRICT = [
    Scenario(server="leaky", quota=quota, window=1.0, processes=number, **_OTHERS)
    for quota in (33, 14, 100)
    for number in (2, 3)
]
_OTHER_WINDOWS = [
    Scenario(
        server=server,
        quota=quota,
        window=window,
        processes=number,
        **(_OTHERS | {"windows": round(60 / window)}),
    )
    for quota, window in ((25, 1.0), (60, 5.0))
    for server in ("fixed", "sliding", "counting")
    for number in (1, 3)
]
_OTHER_SLOTS = [
    Scenario(in_flight=slots, processes=number, workers=workers, **(_BUSY | {"service": (0.09, 0.11)}))
    for slots in (5, 12)
    for number, workers in ((1, 32), (3, 10))
]

SILENT = (
    Goal(
        "no Retry-After: burst of 5, four processes",
        [_BURST],
        [goodput(0.90), refused(0.10), jain(0.90), failed(0)],
    ),
    Goal(
        "no Retry-After: burst of 5, told",
        [replace(_BURST, told=True)],
        [goodput(0.95), refused(0.06), jain(0.95)],
    ),
    Goal("no Retry-After: burst of 5, alone", [_BURST_ALONE], [goodput(0.90), refused(0.08)]),
    Goal(
        "no Retry-After: strict spacing, four processes",
        [_STRICT],
        [goodput(0.50), refused(1.0), jain(0.90)],
    ),
    Goal(
        "no Retry-After: strict spacing, told",
        [replace(_STRICT, told=True)],
        [goodput(0.55), refused(1.0)],
    ),
    Goal(
        "no Retry-After: strict spacing, alone, told or not",
        [_STRICT_ALONE, replace(_STRICT_ALONE, told=True)],
        [goodput(0.85), refused(0.10)],
    ),
    Goal("no Retry-After: burst of 20 delayed, alone", [_DELAYED], [goodput(0.90), refused(0.08)]),
    Goal(
        "no Retry-After: 100 per minute, four processes",
        [_MINUTE],
        [goodput(0.90), refused(0.20), jain(0.85), failed(0)],
    ),
    Goal(
        "no Retry-After: 100 per minute, told",
        [replace(_MINUTE, told=True)],
        [goodput(0.92), refused(0.10), jain(0.90)],
    ),
    Goal(
        "no Retry-After: 2 per second, told",
        [replace(_BURST, told=True, quota=2, burst=20, windows=120, cold=20)],
        [goodput(0.95), jain(0.90)],
    ),
    Goal(
        "no Retry-After: 8 in flight, four processes",
        [_SLOTS],
        [goodput(0.75), refused(0.20), jain(0.85)],
    ),
    Goal("no Retry-After: 8 in flight, alone", [_SLOTS_ALONE], [goodput(0.80), refused(0.15)]),
    Goal("no Retry-After, other bursts", _OTHER_BURSTS, means(0.90, 0.10, 0.90)),
    Goal("no Retry-After, bursts, answers of seconds", _SLOW_ANSWERS, means(0.90, 0.20, 0.85)),
    Goal(
        "no Retry-After, windows, answers of a tenth of a second to three",
        _SLOW_WINDOWS,
        means(0.90, 0.20, 0.85),
    ),
    Goal(
        "no Retry-After, windows, two of four join late",
        _LATE_WINDOWS,
        means(0.90, 0.20, 0.85),
    ),
    Goal(
        "no Retry-After, strict spacing, answers of a second",
        [_SLOW_STRICT],
        [goodput(0.50), refused(1.0), jain(0.90)],
    ),
    Goal("no Retry-After, other strict spacings", _OTHER_STRICT, means(0.50, 1.0, 0.90)),
    Goal("no Retry-After, windows", _OTHER_WINDOWS, means(0.80, 0.15, 0.90)),
    Goal("no Retry-After, other limits in flight", _OTHER_SLOTS, means(0.75, 0.15, 0.85)),
)
