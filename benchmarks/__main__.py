"""`python -m benchmarks --all` measures every table; `python -m benchmarks overhead imports` measures only these.

Each benchmark runs in its own process. `--update` also puts the tables into the pages of docs/.
"""

import argparse
import subprocess
import sys

NAMES = (
    "overhead",
    "steps",
    "loopback",
    "concurrency",
    "wires",
    "contention",
    "imports",
    "memory",
    "scaling",
    "costs",
    "outage",
    "telemetry",
    "sharing",
    "peers",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}")
    parser.add_argument("--all", action="store_true", help="every benchmark")
    parser.add_argument("--quick", action="store_true", help="few, short runs for a first look")
    parser.add_argument("--update", action="store_true", help="also rewrite the pages of docs/")
    options = parser.parse_args()
    unknown = sorted(set(options.names) - set(NAMES))
    if unknown:
        parser.error(f"there is no benchmark named {', '.join(unknown)}; there are {', '.join(NAMES)}")
    names = NAMES if options.all else options.names
    if not names:
        parser.error("name a benchmark, or say --all")
    flags = [flag for flag in ("--quick", "--update") if getattr(options, flag[2:])]
    for name in names:
        subprocess.run([sys.executable, "-m", f"benchmarks.{name}", *flags], check=True)


if __name__ == "__main__":
    main()
