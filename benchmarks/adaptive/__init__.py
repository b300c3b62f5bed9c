"""Many client processes that share one quota, in virtual time, each through its own real stack.

`python -m benchmarks.adaptive` prints how strategies compare; with `--goals`, whether the adaptive limiter reaches its
goals. Twenty minutes of traffic take seconds, and the same seed gives the same figures everywhere.
"""
