"""Programs that join another one late, at servers that refuse without saying how long to wait.

    python -m benchmarks.adaptive.late              # seeds 1 to 8
    python -m benchmarks.adaptive.late 2001 4       # seeds 2001 to 2004

Three programs start 1, 10 or 40 seconds after another one, a fifth of that time apart. None knows the quota. It prints
the part of its share that the one with the least gets from 360 to 600 s, in how many runs that is less than half, and
Jain's index.
"""

import sys
from concurrent.futures import ProcessPoolExecutor
from statistics import fmean
from typing import Final

from tests.support.gateways import FixedWindow, LeakyBucket, World, jain

WINDOWS: Final = ((50, 5.0), (100, 10.0), (300, 30.0), (100, 60.0), (1000, 60.0))
SPACINGS: Final = (5.0, 10.0, 20.0)  # Requests per second.
DELAYS: Final = (1.0, 10.0, 40.0)  # Seconds.


def joined(server: tuple[int, float] | float, delay: float, seed: int) -> tuple[float, float]:
    """The least part of a share, and Jain's index, with a window (requests, seconds) or a spacing (per second)."""
    gateway = FixedWindow(*server) if isinstance(server, tuple) else LeakyBucket(server)
    world = World(gateway, service=0.1, seed=seed)
    workers = 12 if server in {(300, 30.0), (1000, 60.0)} else 6  # As many as such a quota keeps busy.
    for place in (0.0, 1.0, 1.2, 1.4):
        world.add(workers=workers, at=place * delay)
    world.run(600.0)
    shares, _ = world.counts(360.0, 600.0)
    return len(shares) * min(shares) / sum(shares), jain(shares)


def main() -> None:
    first, count = map(int, sys.argv[1:] or (1, 8))
    seeds = range(first, first + count)
    with ProcessPoolExecutor(2) as pool:
        for server in (*SPACINGS, *WINDOWS):
            is_window = isinstance(server, tuple)
            name = "{} per {:g} s".format(*server) if is_window else f"{server:g} per second, spaced out"
            for delay in DELAYS:
                runs = list(pool.map(joined, [server] * count, [delay] * count, seeds))
                least, fairness = zip(*runs, strict=True)
                low = sum(part < 0.5 for part in least)
                print(
                    f"{name}, {delay:g} s: {fmean(least):.2f}, {low} of {count}, {fmean(fairness):.2f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
