"""Runs many cases, each with several seeds, on several processors."""

import multiprocessing
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack

from .metrics import Result, mean, measure
from .scenario import Scenario
from .strategies import Strategy

Case = tuple[Scenario, Strategy]


def run_cases(
    cases: Iterable[Case],
    seeds: Sequence[int],
    *,
    jobs: int = 1,
    advance: Callable[[], object] = lambda: None,
) -> dict[Case, Result]:
    """The mean result of each case over the seeds; `advance` is called after every run.

    How many jobs run at a time makes no difference to the figures.
    """
    different = list(dict.fromkeys(cases))
    runs = [(scenario, strategy, seed) for scenario, strategy in different for seed in seeds]
    found: list[Result] = []
    with ExitStack() as stack:
        compute: Callable[..., Iterable[Result]] = map
        if jobs > 1:
            context = multiprocessing.get_context("spawn")
            compute = stack.enter_context(ProcessPoolExecutor(jobs, mp_context=context)).map
        for result in compute(measure, *zip(*runs, strict=True)):
            found.append(result)
            advance()
    size = len(seeds)
    return {case: mean(found[size * place : size * (place + 1)]) for place, case in enumerate(different)}
