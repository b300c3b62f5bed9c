"""The command `stkai batch`, from its options to its exit code."""

import logging
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, aclosing, suppress
from typing import Any, Final

import anyio
import anyio.to_thread

from .._clock import SystemClock
from .._errors import ConfigurationError, StkaiError
from .._log import logger
from .append_file import WriteError
from .batch_client import BatchClient
from .job import BatchJob, dry_run
from .merge import merge
from .options import JobPlan, Options
from .outputs import FileOutputs
from .progress import Display, Progress, display, escaped, listed
from .runner import Runner

SOME_FAILED: Final = 1
REFUSED: Final = 2
HALTED: Final = 3
INTERRUPTED: Final = 130

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
    for each in _signals():  # Before and after a run, all interrupt alike.
        signal.signal(each, signal.default_int_handler)
    try:
        plan = JobPlan.of(Options(**given))
        if plan.options.dry_run:
            return 0 if dry_run(plan, say) else SOME_FAILED
        return _run_job(plan, warnings)
    except ConfigurationError as error:
        complain(str(error))
        return REFUSED
    except WriteError as error:
        complain(f"{error}. Nothing was sent; free some disk space and run the command again")
        return HALTED
    except KeyboardInterrupt:
        complain("interrupted")
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


def _signals() -> list[signal.Signals]:
    """The signals that end a run; those that are ignored, as under `nohup`, stay ignored."""
    if sys.platform == "win32":  # Its event loops handle none, and Ctrl-C ends them.
        return []
    wanted = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    return [each for each in wanted if signal.getsignal(each) is not signal.SIG_IGN]


def _run_job(plan: JobPlan, warnings: _Warnings) -> int:
    """Open the job and run it; returns the exit code."""
    client = BatchClient(plan.options)
    with ExitStack() as stack:
        job = BatchJob(plan, stack)
        if job.is_cut_off:
            complain("stdin was cut off when an earlier run ended: only the lines copied by then are sent")
        shown = warnings.display = display(quiet=plan.options.quiet, say=say)
        stack.callback(shown.close)
        return _JobRun(job, client, shown).run()


class _JobRun:
    """One run of a job: shows its progress, keeps its files up to date, and says how it ended."""

    def __init__(self, job: BatchJob, client: BatchClient, shown: Display) -> None:
        self._job, self._client, self._display = job, client, shown
        self._options, self._runner = job.plan.options, Runner(job, client)
        self._clock = SystemClock()

    def run(self) -> int:
        anyio.run(self._work)
        self._display.close()
        self._finish_files()
        return self._conclude()

    async def _work(self) -> None:
        with anyio.open_signal_receiver(*_signals()) as signals:
            async with aclosing(self._client), anyio.create_task_group() as group:
                group.start_soon(self._watch)
                group.start_soon(self._end_at_signals, signals)
                await self._runner.run()
                group.cancel_scope.cancel()

    async def _end_at_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        """At the first signal, end the run; at the second one, the process."""
        why = f"interrupted by {(await anext(signals)).name}"
        self._runner.end("interrupted", why)
        if any(not each.may_drop for each in self._runner.in_flight.values()):
            self._display.say(f"{why}: waiting for the requests in flight; interrupt again to abort them")
        await anext(signals)
        self._display.close()
        os._exit(INTERRUPTED)

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
