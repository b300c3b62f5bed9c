"""`stkai batch`: thousands of requests from a file, and `stkai batch merge` for the outputs of shards."""

import inspect
import logging
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import ExitStack, aclosing, suppress
from shutil import rmtree
from typing import Annotated, Any, Final

import anyio
import typer

from .._batch.append_file import WriteError
from .._batch.batch_client import BatchClient
from .._batch.job import BatchJob, dry_run
from .._batch.merge import merge
from .._batch.options import Options, PriceOption, format_of
from .._batch.outputs import INVALID_LINE, FileOutputs
from .._batch.progress import Display, Progress, count, display, listed, print_error, say
from .._batch.runner import HALTED, INTERRUPTED, Runner
from .._clock import SystemClock
from .._errors import ConfigurationError, StkaiError, escaped
from .._event_loops import in_thread
from .._log import logger
from ..transports._auth.bearer import ExposedTokenError

SOME_FAILED: Final = 1
REFUSED: Final = 2

_SYNC_EVERY: Final = 1.0
_SAME_SIGNAL: Final = 0.02  # Seconds within which a second signal counts as a repetition of the first.
_MAX_CODES: Final = 5  # Kinds of failures that the summary lists.


def batch(**given: Any) -> None:
    """Send the requests in INPUT. Write the answers to OUT.jsonl and the failures to OUT.failed.jsonl.

    --resume continues a job that was interrupted or halted; --retry-failed sends its failed lines again. A line that
    the server may have executed is not sent twice: one that was in flight when a run was killed, and one that ended in
    a 500 or a broken connection, is a failure. With --unknown resend, it is sent again. `stkai batch merge` joins the
    outputs of shards.

    Exit codes: 0 all done, 1 some failed, 2 wrong usage, 3 halted and resumable, 130 interrupted.
    """
    raise typer.Exit(run_batch(given))


# Typer reads the command's parameters from the signature.
batch.__signature__ = inspect.signature(Options)  # type: ignore[attr-defined]


def merge_outputs(
    outs: Annotated[list[str], typer.Argument(metavar="OUT", help="Outputs of the shards, as passed to -o.")],
    out: Annotated[str, typer.Option("-o", "--out", metavar="ALL", help="Write the joined output here.")],
    partial: Annotated[
        bool,
        typer.Option("--partial", help="Join what there is, even if lines are missing or the inputs differ."),
    ] = False,
    price: PriceOption = None,
) -> None:
    """Join the outputs of shards, both answers and failures, in input order.

    Exit codes: 0 all done, 1 some failed, 2 an output or a line is missing, ALL exists, a line occurs twice, or the
    inputs differ.
    """
    try:
        done, failed, usage = merge(outs, out, partial=partial)
    except (StkaiError, OSError) as error:
        raise typer.Exit(_refused(error)) from error
    if tokens := usage.text(price):
        say(tokens)
    say(f"{done} done, {failed} failed")
    raise typer.Exit(SOME_FAILED if failed else 0)


class _Warnings(logging.Handler):
    """Shows the warnings of the stack, such as a store that cannot be reached."""

    def emit(self, record: logging.LogRecord) -> None:
        print_error(escaped(record.getMessage()))


def run_batch(given: Mapping[str, Any]) -> int:
    """Run the command with these option values; returns its exit code."""
    warnings = _Warnings(logging.WARNING)
    logger.addHandler(warnings)
    _interrupt_at_signals()
    try:
        options = Options(**given)
        form = format_of(options)
        client = None if options.dry_run else BatchClient(options)
        with ExitStack() as stack:
            job = BatchJob(options, form, stack)
            if client is None:
                return 0 if dry_run(job) else SOME_FAILED
            shown = display(quiet=options.quiet, to_stdout=options.to_stdout)
            stack.callback(shown.close)
            job.outputs.before_stderr = shown.close
            return _CommandRun(job, client, shown).run()
    except WriteError as error:
        print_error(f"{error}. Nothing was sent; free some disk space and run the command again")
        return HALTED
    except (StkaiError, OSError) as error:
        return _refused(error)
    except KeyboardInterrupt:
        print_error("interrupted")
        return INTERRUPTED
    except Exception:  # noqa: BLE001 - Python's exit code for it, 1, would say that the job is done
        print_error(
            f"this should not happen; if a job has begun, --resume continues it\n{traceback.format_exc()}"
        )
        return HALTED
    finally:
        logger.removeHandler(warnings)


def _refused(error: StkaiError | OSError) -> int:
    """Report why the command cannot run; returns the exit code."""
    if isinstance(error, OSError) and error.filename is not None:
        error = ConfigurationError(f"{error.filename} cannot be used: {error.strerror}")
    print_error(str(error))
    return REFUSED if isinstance(error, (ConfigurationError, ExposedTokenError)) else HALTED


def _signals() -> list[signal.Signals]:
    """The signals that end a run; those that are ignored, as under `nohup`, stay ignored."""
    if sys.platform == "win32":  # Event loops handle no signals there, and Ctrl-C ends them.
        return []
    wanted = signal.SIGINT, signal.SIGTERM, signal.SIGHUP
    return [each for each in wanted if signal.getsignal(each) is not signal.SIG_IGN]


def _interrupt_at_signals() -> None:
    """Make these signals raise KeyboardInterrupt; during a run, the event loop handles them instead."""
    for each in _signals():
        signal.signal(each, signal.default_int_handler)


class _CommandRun:
    """One run of the command: shows its progress, keeps its files up to date, and reports how it ended."""

    def __init__(self, job: BatchJob, client: BatchClient, shown: Display) -> None:
        self._job, self._client, self._display = job, client, shown
        self._options, self._runner = job.options, Runner(job, client)
        self._clock, self._has_ended = SystemClock(), False

    def run(self) -> int:
        try:
            anyio.run(self._work)
        except RuntimeError:
            if not self._has_ended:  # Otherwise, asyncio could not start the thread that ends its others.
                raise
        _interrupt_at_signals()  # The event loop has restored the system's handlers.
        self._display.show(self._clock.monotonic(), self._progress())
        self._display.close()
        self._copy_rest()
        self._finish_files()
        return self._print_summary()

    async def _work(self) -> None:
        with anyio.open_signal_receiver(*_signals()) as signals:
            async with aclosing(self._client), anyio.create_task_group() as group:
                group.start_soon(self._update)
                group.start_soon(self._end_at_signals, signals)
                await self._runner.run()
                group.cancel_scope.cancel()
        self._has_ended = True

    async def _end_at_signals(self, signals: AsyncIterator[signal.Signals]) -> None:
        """Stop the run at the first signal, and the process at the second.

        `timeout` signals a process and its group at once; when a terminal is closed, both it and its shell send SIGHUP.
        """
        why = f"interrupted by {(await anext(signals)).name}"
        first, stdin = self._clock.monotonic(), self._job.stdin
        if stdin is not None and self._job.survey is None:
            stdin.is_cut_off = True  # Ctrl-C in a pipeline also ends its writer, and it then looks complete.
        self._runner.stop(INTERRUPTED, why)
        if any(not (each.may_drop or each.is_waiting) for each in self._runner.in_flight.values()):
            say(f"{why}: waiting for the requests in flight; interrupt again to abort them")
        async for again in signals:
            if again is not signal.SIGHUP and self._clock.monotonic() - first > _SAME_SIGNAL:
                self._display.close()
                await self._runner.abort()
                with suppress(WriteError):
                    self._job.note()
                self._print_summary()
                if stdin is not None and self._options.to_stdout:
                    rmtree(stdin.path.parent, ignore_errors=True)  # It holds the requests.
                os._exit(INTERRUPTED)

    async def _update(self) -> None:
        """Show the progress; every second, record the input and the tokens, and sync the files if requested."""
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
                        await in_thread(self._job.sync)
                except WriteError as error:
                    self._runner.stop(HALTED, str(error))

    def _progress(self) -> Progress:
        job = self._job
        failed = job.outputs.codes.total()
        in_flight = self._runner.in_flight.values()
        waiting = [line for line in in_flight if line.may_drop and line.execution is None]
        return Progress(
            finished=job.outputs.done + failed,
            total=None if job.survey is None else job.survey.lines,
            failed=failed,
            waiting=len(waiting),
            refusals=Counter(line.refusal for line in waiting if line.refusal is not None),
            tokens=job.usage.text(self._options.price),
        )

    def _copy_rest(self) -> None:
        """After a halt, copy stdin to its end, since a resumed job reads only the copy."""
        stdin, (code, why) = self._job.stdin, self._runner.stop_reason or (0, "")
        if code != HALTED or stdin is None or not stdin.is_alive() or self._options.to_stdout:
            return
        try:
            say(f"{why}: copying the rest of stdin, which --resume sends; interrupt to leave it out")
            stdin.join()
        except KeyboardInterrupt:
            stdin.is_cut_off = True

    def _finish_files(self) -> None:
        job, runner = self._job, self._runner
        if job.stdin is not None and job.stdin.error is not None:
            runner.stop(HALTED, f"{job.stdin.error}; the rest of stdin is not sent")
        try:
            job.note()
            if self._options.sync != "never":
                job.sync()
            progress = self._progress()
            missing = (progress.total or 0) - progress.finished
            if missing > 0:  # Has no effect if the run has already been stopped for another reason.
                what = f"{count(missing, 'line')} of {self._options.source} could not be read"
                runner.stop(HALTED, f"{what}: it has changed during the run; restore it")
            if self._options.order == "input" and runner.stop_reason is None:
                job.sort()
        except (WriteError, OSError) as error:
            runner.stop(HALTED, str(error))

    def _print_summary(self) -> int:
        """Report what happened and what to do next; returns the exit code."""
        job, runner = self._job, self._runner
        reason, codes = runner.stop_reason, job.outputs.codes
        code = SOME_FAILED if codes else 0
        if reason is not None:
            code, message = reason
            print_error(message)
            if not self._options.to_stdout:
                self._explain_unwritten()
                say("to continue: run the same command with --resume")
                if job.stdin is not None and job.survey is None:
                    say("stdin had not ended: pass it again, or only the lines that were copied are sent")
        if self._options.quiet and not code:
            return code
        if codes:
            self._explain_failures()
        tokens = job.usage.text(self._options.price)
        if tokens:
            say(tokens)
        say(f"{job.outputs.done} done, {codes.total()} failed ({job.outputs.unknown} unknown)")
        return code

    def _explain_unwritten(self) -> None:
        outputs = self._job.outputs
        if isinstance(outputs, FileOutputs) and outputs.unwritten:
            what = count(outputs.unwritten, "outcome")
            say(
                f"{what} could not be written and went to stderr: append what has no error to {outputs.answers.path},"
                f" and the rest to {outputs.failures.path}, before you resume; otherwise they count as unknown"
            )

    def _explain_failures(self) -> None:
        outputs, codes = self._job.outputs, self._job.outputs.codes
        shown = listed([f"{count:,} {code}" for code, count in codes.most_common()], _MAX_CODES)
        if not isinstance(outputs, FileOutputs):
            say(f"failed: {shown}")
            return
        say(f"failed, in {outputs.failures.path}: {shown}")
        if set(codes) == {INVALID_LINE}:
            say("to send them, correct these lines in a file of their own, and run that as another job")
        else:
            say("to send them again: run the same command with --retry-failed")
