"""What the adaptive limiter is measured on for real: the servers, the crowds, and what is to be reached."""

from dataclasses import dataclass
from typing import NamedTuple

from .gateways import Apache, Envoy, Express, Gateway, HaProxy, Limits, Nginx, NginxInFlight, Varnish


class Goal(NamedTuple):
    """What a row should reach: at least, at most, at least, at least. Zero, infinity: no goal."""

    used: float
    refused: float
    jain: float = 0.0
    least: float = 0.0


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A server, and those who send to it.

    Attributes:
        name: for the command line.
        title: for the table.
        gateway: the server.
        processes: how many share it.
        threads: of each process.
        told: requests and seconds for strategies that know the quota; None for a server without one.
        seconds: length of a run.
        warm: seconds at its start that the second figure of what was used leaves out.
        goals: of the adaptive limiter, without and with numbers.
    """

    name: str
    title: str
    gateway: Gateway
    processes: int = 4
    threads: int = 4
    told: tuple[int, float] | None = None
    seconds: float = 60.0
    warm: float = 10.0
    goals: tuple[Goal | None, Goal | None] = (None, None)


_SECOND, _MINUTE = (20, 1.0), (100, 60.0)

ROWS = (
    Row(
        name="burst-alone",
        title="nginx, burst=5 nodelay, alone",
        gateway=Nginx(20, burst=5),
        processes=1,
        threads=8,
        told=_SECOND,
        warm=5.0,
        goals=(Goal(0.90, 0.08), None),
    ),
    Row(
        name="burst",
        title="nginx, burst=5 nodelay",
        gateway=Nginx(20, burst=5),
        told=_SECOND,
        goals=(Goal(0.90, 0.10, 0.90, 0.5), Goal(0.95, 0.06, 0.95, 0.6)),
    ),
    Row(
        name="burst-asks",
        title="nginx, burst=5 nodelay, Retry-After: 1",
        gateway=Nginx(20, burst=5, asks=1),
        told=_SECOND,
        goals=(Goal(0.90, 0.10, 0.90, 0.5), None),
    ),
    Row(
        name="strict-alone",
        title="nginx, no burst, alone",
        gateway=Nginx(20),
        processes=1,
        threads=8,
        told=_SECOND,
        goals=(Goal(0.85, 0.10), Goal(0.85, 0.10)),
    ),
    Row(
        name="strict",
        title="nginx, no burst",
        gateway=Nginx(20),
        told=_SECOND,
        goals=(Goal(0.50, 1.0, 0.90, 0.5), Goal(0.55, 1.0)),
    ),
    Row(name="strict-100", title="nginx, 100 per second, no burst", gateway=Nginx(100), told=(100, 1.0)),
    Row(
        name="delayed",
        title="nginx, burst=20 delayed, alone",
        gateway=Nginx(20, burst=20, nodelay=False),
        processes=1,
        threads=64,
        told=_SECOND,
        warm=5.0,
        goals=(Goal(0.90, 0.08), None),
    ),
    Row(
        name="minute",
        title="nginx, 100 per minute, burst=10",
        gateway=Nginx(100, "m", burst=10),
        told=_MINUTE,
        seconds=100.0,
        warm=1.0,
        goals=(Goal(0.90, 0.20, 0.85, 0.4), Goal(0.92, 0.10, 0.90, 0.5)),
    ),
    Row(name="burst-5", title="nginx, 5 per second, burst=5", gateway=Nginx(5, burst=5), told=(5, 1.0)),
    Row(
        name="slow",
        title="nginx, 5 per second, burst=5, answers take 2 s",
        gateway=Nginx(5, burst=5, seconds=2.0),
        threads=8,
        told=(5, 1.0),
        seconds=120.0,
        warm=20.0,
    ),
    Row(
        name="slots-alone",
        title="nginx, 8 in flight, 0.2 s each, alone",
        gateway=NginxInFlight(8, 0.2),
        processes=1,
        threads=32,
        goals=(Goal(0.80, 0.15), None),
    ),
    Row(
        name="slots",
        title="nginx, 8 in flight, 0.2 s each",
        gateway=NginxInFlight(8, 0.2),
        threads=8,
        goals=(Goal(0.75, 0.20, 0.85, 0.4), None),
    ),
    Row(name="haproxy", title="HAProxy, 20 per 1 s", gateway=HaProxy(20, 1.0), told=_SECOND),
    Row(name="haproxy-10", title="HAProxy, 100 per 10 s", gateway=HaProxy(100, 10.0), told=(100, 10.0)),
    Row(name="envoy", title="Envoy, 20 per second, burst=20", gateway=Envoy(20, 1.0, 20), told=_SECOND),
    Row(
        name="envoy-says",
        title="Envoy, 20 per second, burst=20, its headers",
        gateway=Envoy(20, 1.0, 20, describes=True),
        told=_SECOND,
    ),
    Row(
        name="envoy-minute",
        title="Envoy, 100 per minute, burst=100",
        gateway=Envoy(100, 60.0, 100),
        told=_MINUTE,
        seconds=180.0,
        warm=60.0,
    ),
    Row(
        name="envoy-minute-says",
        title="Envoy, 100 per minute, burst=100, its headers",
        gateway=Envoy(100, 60.0, 100, describes=True),
        told=_MINUTE,
        seconds=180.0,
        warm=60.0,
    ),
    Row(name="varnish", title="Varnish, 20 per 1 s", gateway=Varnish(20, 1.0), told=_SECOND),
    Row(name="qos", title="Apache mod_qos, 20 per 2 s", gateway=Apache(20, 2), told=(20, 2.0)),
    Row(name="express", title="express-rate-limit, 20 per 1 s", gateway=Express(20, 1.0), told=_SECOND),
    Row(
        name="express-10",
        title="express-rate-limit, 100 per 10 s",
        gateway=Express(100, 10.0),
        told=(100, 10.0),
    ),
    Row(
        name="fixed",
        title="limits, fixed window, 20 per 1 s",
        gateway=Limits(20, 1.0, "FixedWindow"),
        told=_SECOND,
    ),
    Row(
        name="moving",
        title="limits, moving window, 100 per 10 s",
        gateway=Limits(100, 10.0, "MovingWindow"),
        told=(100, 10.0),
    ),
    Row(
        name="sliding",
        title="limits, sliding counter, 100 per 10 s",
        gateway=Limits(100, 10.0, "SlidingWindowCounter"),
        told=(100, 10.0),
    ),
)
