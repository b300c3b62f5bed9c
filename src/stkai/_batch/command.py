"""The command `stkai batch`, from its options to its exit code."""

import asyncio
import logging
import os
import signal
import sys
from collections.abc import Callable, Mapping
from contextlib import ExitStack, aclosing, suppress
from types import FrameType
from typing import Any, Final, Self

import anyio
import anyio.to_thread

from .._clock import SystemClock
from .._errors import ConfigurationError, StkaiError
from .._log import logger
from .append_file import WriteError
from .batch_client import BatchClient
from .job import BatchJob
from .merge import merge
from .options import Options
from .output_lines import escaped
from .outputs import FileOutputs
from .preflight import JobPlan, dry_run
from .progress import Display, Progress, display, listed
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


def run_batch(given: Mapping[str, Any]) -> int:
    """Run the command with these values of its options; returns its exit code."""
    warnings = _Warnings(logging.WARNING)
    logger.addHandler(warnings)
    with _Interrupts() as interrupts:
        try:
            plan = JobPlan.of(Options(**given))
            if plan.options.dry_run:
                return 0 if dry_run(plan, say) else SOME_FAILED
            return _run_job(plan, interrupts, warnings)
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
            logger.removeHandler(warnings)


def run_merge(outs: list[str], target: str, *, partial: bool) -> int:
    """Run the command `merge`; returns its exit code."""
    try:
        done, failed = merge(outs, target, partial=partial)
    except StkaiError as error:
        complain(str(error))
        return REFUSED if isinstance(error, ConfigurationError) else HALTED
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


def _run_job(plan: JobPlan, interrupts: _Interrupts, warnings: _Warnings) -> int:
    """Open the job and run it; returns the exit code."""
    client = BatchClient(plan.options)
    with ExitStack() as stack:
        job = BatchJob(plan, stack)
        if job.is_cut_off:
            complain("stdin was cut off when an earlier run ended: only the lines copied by then are sent")
        shown = warnings.display = display(quiet=plan.options.quiet, say=say)
        stack.callback(shown.close)
        interrupts.on_second = shown.close
        return _JobRun(job, client, interrupts, shown).run()


class _JobRun:
    """One run of a job: shows its progress, keeps its files up to date, and says how it ended."""

    def __init__(self, job: BatchJob, client: BatchClient, interrupts: _Interrupts, shown: Display) -> None:
        self._job, self._client, self._interrupts, self._display = job, client, interrupts, shown
        self._options, self._runner = job.plan.options, Runner(job, client)
        self._clock = SystemClock()

    def run(self) -> int:
        anyio.run(self._work)
        self._display.close()
        self._finish_files()
        return self._conclude()

    async def _work(self) -> None:
        loop = asyncio.get_running_loop()

        def interrupt(name: str) -> None:
            # Call through the loop to wake it; a closed loop has nothing left to end.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(self._end, f"interrupted by {name}")

        self._interrupts.on_first = interrupt
        async with aclosing(self._client), anyio.create_task_group() as group:
            group.start_soon(self._watch)
            await self._runner.run()
            group.cancel_scope.cancel()

    def _end(self, why: str) -> None:
        self._runner.end("interrupted", why)
        if any(not each.may_drop for each in self._runner.in_flight.values()):
            self._display.say(f"{why}: waiting for the requests in flight; interrupt again to abort them")

    async def _watch(self) -> None:
        """Show the progress; every second, record the input and the tokens, and sync the files if asked to."""
        noted = self._clock.monotonic()
        while True:
            await self._clock.asleep(self._display.pause)
            now = self._clock.monotonic()
            self._display.show(now, self._progress())
            if now - noted >= _SYNC_EVERY:
                noted = now
                try:
                    self._job.note()
                    if self._options.sync == "1s":
                        await anyio.to_thread.run_sync(self._job.sync)
                except WriteError as error:
                    self._runner.end("halted", str(error))

    def _progress(self) -> Progress:
        job = self._job
        failed = job.outputs.codes.total()
        in_flight = self._runner.in_flight.values()
        return Progress(
            finished=job.outputs.done + failed,
            total=None if job.survey is None else job.survey.lines,
            failed=failed,
            waiting=sum(line.may_drop and line.execution is None for line in in_flight),
            tokens=job.usage.text(self._options.prices),
        )

    def _finish_files(self) -> None:
        job, runner = self._job, self._runner
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

    def _conclude(self) -> int:
        """Say what happened and what to do next; returns the exit code."""
        job, runner = self._job, self._runner
        ending, codes = runner.ending, job.outputs.codes
        code = SOME_FAILED if codes else 0
        if ending is not None:
            code = HALTED if ending.kind == "halted" else INTERRUPTED
            complain(ending.message)
            if not self._options.to_stdout:
                say("to continue: run the same command with --resume")
        if self._options.quiet and not code:
            return code
        if codes:
            self._explain_failures()
        tokens = job.usage.text(self._options.prices)
        if tokens:
            say(tokens)
        say(f"{job.outputs.done} done, {codes.total()} failed ({job.outputs.unknown} unknown)")
        return code

    def _explain_failures(self) -> None:
        outputs, codes = self._job.outputs, self._job.outputs.codes
        shown = listed([f"{count:,} {code}" for code, count in codes.most_common()], _SHOWN)
        if not isinstance(outputs, FileOutputs):
            say(f"failed: {shown}")
            return
        say(f"failed, in {outputs.failures.path}: {shown}")
        if set(codes) == {"invalid_line"}:
            say("to send them, correct these lines in a file of their own, and run that as another job")
        else:
            say("to send them again: run the same command with --retry-failed")
