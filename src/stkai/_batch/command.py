"""The command `stkai batch`, from its options to its exit code."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import ExitStack, suppress
from types import FrameType
from typing import Any, Final, Self

import anyio
import anyio.to_thread

from .._clock import SystemClock
from .._errors import ConfigurationError
from .append_file import WriteError
from .batch_client import BatchClient
from .job import BatchJob
from .merge import merge
from .options import Options
from .output_lines import escaped
from .preflight import JobPlan, dry_run
from .progress import Display, Progress, display
from .runner import Runner

SOME_FAILED: Final = 1
REFUSED: Final = 2
HALTED: Final = 3
INTERRUPTED: Final = 130

_SIGNALS: Final = ("SIGINT", "SIGTERM", "SIGHUP")
_SYNC_EVERY: Final = 1.0
_SHOWN: Final = 5


def say(message: str) -> None:
    """Write a message to stderr, if it is still open, with control characters escaped."""
    with suppress(OSError, ValueError, AttributeError):  # A stderr that is closed is None.
        sys.stderr.write("".join(f"{escaped(line)}\n" for line in message.split("\n")))
        sys.stderr.flush()


def complain(message: str) -> None:
    """Report an error on stderr."""
    say(f"stkai batch: {message}")


class _Warnings(logging.Handler):
    """Shows the warnings of the stack, such as a store that cannot be reached."""

    display = Display(say)

    def emit(self, record: logging.LogRecord) -> None:
        self.display.say(f"stkai batch: {escaped(record.getMessage())}")


def run_batch(options: Options) -> int:
    """Run the command; returns its exit code."""
    warnings = _Warnings(logging.WARNING)
    logging.getLogger("stkai").addHandler(warnings)
    with _Interrupts() as interrupts:
        try:
            plan = JobPlan.of(options)
            if options.dry_run:
                return 0 if dry_run(plan, say) else SOME_FAILED
            return _Run(plan, interrupts, warnings).run()
        except ConfigurationError as error:
            complain(str(error))
            return REFUSED
        except WriteError as error:
            complain(f"{error}. Nothing was sent; free some disk space and run the command again")
            return HALTED
        except KeyboardInterrupt:
            complain("interrupted before anything was sent")
            return INTERRUPTED
        finally:
            logging.getLogger("stkai").removeHandler(warnings)


def run_merge(outs: list[str], target: str, *, partial: bool) -> int:
    """Run the command `merge`; returns its exit code."""
    try:
        done, failed = merge(outs, target, partial=partial)
    except ConfigurationError as error:
        complain(str(error))
        return REFUSED
    except WriteError as error:
        complain(str(error))
        return HALTED
    say(f"{done} done, {failed} failed")
    return SOME_FAILED if failed else 0


class _Interrupts:
    """Handles SIGINT, SIGTERM and SIGHUP in a `with` block; signals that are ignored, as under `nohup`, stay ignored.

    Attributes:
        on_first: called on the first signal; if None, that raises KeyboardInterrupt.
        on_second: called on the second signal, before the process exits.
    """

    def __init__(self) -> None:
        self.on_first: Callable[[str], None] | None = None
        self.on_second: Callable[[], object] = int
        self._count = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        for name in _SIGNALS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _: FrameType | None) -> None:
        self._count += 1
        if self._count > 1:
            try:
                self.on_second()
            finally:
                os._exit(INTERRUPTED)
        if self.on_first is None:
            raise KeyboardInterrupt
        self.on_first(signal.Signals(number).name)


class _Run:
    """One run, with its job, its client and its display."""

    def __init__(self, plan: JobPlan, interrupts: _Interrupts, warnings: _Warnings) -> None:
        self._plan, self._options, self._interrupts = plan, plan.options, interrupts
        self._clock = SystemClock()
        self._warnings, self._display = warnings, warnings.display

    def run(self) -> int:
        client = BatchClient(self._options)
        with ExitStack() as stack:
            job = BatchJob.open(self._plan, stack)
            if job.is_cut_off:
                complain(
                    "stdin was cut off when an earlier run ended: only the lines copied by then are sent"
                )
            self._display = self._warnings.display = display(quiet=self._options.quiet, say=say)
            stack.callback(self._display.close)
            self._interrupts.on_second = self._display.close
            runner = Runner(job, client)
            anyio.run(self._work, runner, client, job)
            self._display.close()
            self._finish_files(runner, job)
            return self._conclude(runner, job)

    async def _work(self, runner: Runner, client: BatchClient, job: BatchJob) -> None:
        loop = asyncio.get_running_loop()

        def interrupt(name: str) -> None:
            # Call through the loop to wake it; a closed loop has nothing left to end.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(runner.end, "interrupted", f"interrupted by {name}")

        self._interrupts.on_first = interrupt
        async with client, anyio.create_task_group() as group:
            group.start_soon(self._watch, runner, job)
            await runner.run()
            group.cancel_scope.cancel()

    async def _watch(self, runner: Runner, job: BatchJob) -> None:
        """Show the progress; every second, record the input and the tokens, and sync the files if asked to."""
        noted = self._clock.monotonic()
        while True:
            await self._clock.asleep(self._display.pause)
            now = self._clock.monotonic()
            self._display.show(now, _progress(runner, job))
            if now - noted >= _SYNC_EVERY:
                noted = now
                try:
                    job.note()
                    if self._options.sync == "1s":
                        await anyio.to_thread.run_sync(job.sync)
                except WriteError as error:
                    runner.end("halted", str(error))

    def _finish_files(self, runner: Runner, job: BatchJob) -> None:
        if job.stdin is not None and job.stdin.error is not None:
            runner.end("halted", f"{job.stdin.error}; the rest of stdin is lost")
        try:
            job.note()
            if self._options.sync != "never":
                job.sync()
            if self._options.order == "input" and runner.ending is None:
                job.sort()
        except WriteError as error:
            runner.end("halted", str(error))

    def _conclude(self, runner: Runner, job: BatchJob) -> int:
        """Say what happened and what to do next; returns the exit code."""
        ending, codes = runner.ending, job.outputs.codes
        code = SOME_FAILED if codes else 0
        if ending is not None:
            code = HALTED if ending.kind == "halted" else INTERRUPTED
            complain(ending.message)
            if not self._options.to_stdout:
                say(f"to continue: {self._options.command('--resume')}")
        if self._options.quiet and not code:
            return code
        if runner.duplicates:
            shown = ", ".join(f"{own_id} in line {number}" for number, own_id in runner.duplicates[:_SHOWN])
            more = ", ..." if len(runner.duplicates) > _SHOWN else ""
            say(f"duplicate custom_id: {shown}{more}; use `id` to tell these lines apart")
        if codes:
            self._explain_failures(job)
        tokens = job.usage.text(self._options.prices)
        if tokens:
            say(tokens)
        say(f"{job.outputs.done} done, {codes.total()} failed ({runner.unknown} unknown)")
        return code

    def _explain_failures(self, job: BatchJob) -> None:
        codes = job.outputs.codes
        shown = ", ".join(f"{count:,} {code}" for code, count in codes.most_common(_SHOWN))
        more = ", ..." if len(codes) > _SHOWN else ""
        if job.paths is None:
            say(f"failed: {shown}{more}")
            return
        say(f"failed, in {job.paths.failed}: {shown}{more}")
        if set(codes) == {"invalid_line"}:
            say("to send them, correct these lines in a file of their own, and run that as another job")
        else:
            say(f"to send them again: {self._options.command('--retry-failed')}")


def _progress(runner: Runner, job: BatchJob) -> Progress:
    failed = job.outputs.codes.total()
    return Progress(
        finished=job.outputs.done + failed,
        total=None if job.survey is None else job.survey.lines,
        failed=failed,
        waiting=sum(line.may_drop and line.execution is None for line in runner.in_flight.values()),
        tokens=job.usage.text(job.plan.options.prices),
    )
