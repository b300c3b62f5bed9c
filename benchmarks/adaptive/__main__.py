"""`python -m benchmarks.adaptive`: prints the tables and draws the plots."""

import argparse
from collections.abc import Iterable, Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from . import page, real, warm
from .bounds import Results
from .goals import judge, needed_cases
from .runner import Case, run_cases
from .sections import SECTIONS, SHARING, STEPS, Section
from .show import draw_rates, draw_sharing, print_cases, print_section, print_verdicts

_WIDTH = 150


def main(argv: Sequence[str] | None = None) -> None:
    """Run what the arguments ask for."""
    arguments = _parse(argv)
    if arguments.all:
        common = ["--update", "--out", str(arguments.out)]
        jobs = ["--jobs", str(arguments.jobs)]
        seeds = ["--seeds", "5", "--first-seed", "1001"]
        main([*seeds, *common, *jobs])
        main(["--goals", *seeds, *common, *jobs])
        warm.main(["--update"])
        for quota in real.PAGE:
            real.main([*quota, *common])
        return
    console = Console(record=True, width=_WIDTH)
    arguments.out.mkdir(parents=True, exist_ok=True)
    if arguments.goals:
        _judge_goals(console, arguments)
    else:
        _compare(console, arguments)
    path = arguments.out / ("goals.txt" if arguments.goals else "tables.txt")
    console.save_text(str(path))
    console.print(f"The same, and the plots, are in {arguments.out}.", highlight=False)


def _judge_goals(console: Console, arguments: argparse.Namespace) -> None:
    cases = needed_cases()
    results = _run(cases, arguments)
    verdicts = judge(results)
    print_cases(console, list(dict.fromkeys(cases)), results)
    print_verdicts(console, verdicts)
    if arguments.update:
        page.write_verdicts(verdicts, _seeds(arguments))


def _compare(console: Console, arguments: argparse.Namespace) -> None:
    names = arguments.sections or [section.name for section in ([SHARING] if arguments.quick else SECTIONS)]
    sections = [section for section in SECTIONS if section.name in names]
    results = _run([case for section in sections for case in section.cases], arguments)
    for section in sections:
        print_section(console, section, results)
        if arguments.update:
            page.write_section(section, results)
    _draw(sections, results, arguments.out, "")
    if arguments.update:
        _draw(sections, results, page.IMAGES, "adaptive-")


def _draw(sections: Sequence[Section], results: Results, folder: Path, prefix: str) -> None:
    if SHARING in sections:
        draw_sharing(SHARING, results, folder / f"{prefix}sharing")
        draw_rates(SHARING, SHARING.scenarios[1], results, folder / f"{prefix}rates")
    if STEPS in sections:
        for scenario in STEPS.scenarios[::3]:
            draw_rates(STEPS, scenario, results, folder / f"{prefix}step-{scenario.step:g}")


def _run(cases: Iterable[Case], arguments: argparse.Namespace) -> Results:
    listed = list(dict.fromkeys(cases))
    seeds = _seeds(arguments)
    with Progress(console=Console(stderr=True), transient=True) as progress:
        bar = progress.add_task(f"{len(listed)} cases, {len(seeds)} seed(s)", total=len(listed) * len(seeds))
        return run_cases(listed, seeds, jobs=arguments.jobs, advance=lambda: progress.advance(bar))


def _seeds(arguments: argparse.Namespace) -> range:
    return range(arguments.first_seed, arguments.first_seed + (1 if arguments.quick else arguments.seeds))


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.adaptive", description=__doc__)
    parser.add_argument("--goals", action="store_true", help="judge the adaptive limiter against its goals")
    parser.add_argument(
        "--all",
        action="store_true",
        help="all comparisons, the goals and the real runs, into docs/research/adaptive.md",
    )
    parser.add_argument(
        "--update", action="store_true", help="write the results to docs/research/adaptive.md"
    )
    parser.add_argument("--quick", action="store_true", help="one seed, and the first comparison only")
    names = [section.name for section in SECTIONS]
    parser.add_argument("--sections", nargs="+", choices=names, help="these comparisons only")
    parser.add_argument(
        "--seeds",
        type=int,
        default=5,
        help="runs of each case, whose mean is shown; all comparisons with 5 take half an hour",
    )
    parser.add_argument(
        "--first-seed", type=int, default=1, help="first seed, to measure on seeds not used for tuning"
    )
    parser.add_argument("--jobs", type=int, default=2, help="number of parallel processes")
    parser.add_argument(
        "--out", type=Path, default=Path(".cache/adaptive"), help="folder of tables and plots"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    main()
