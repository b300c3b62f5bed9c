"""The command `stkai batch`, from its options to its exit code."""

import asyncio
import logging
import sys
import tempfile
import uuid
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any, Final

import anyio
import anyio.to_thread

from .._clock import SystemClock, unique_key
from .errors import UsageError, WriteError
from .fates import DONE, FAILED, Fates
from .intents import Intents
from .interrupts import INTERRUPTED, Interrupts
from .merge import merge
from .options import Options
from .plan import Plan
from .progress import Display, Standing, display
from .replay import Replay
from .runner import Runner
from .senders import async_sender
from .session import Session
from .sinks import Stdout
from .spool import Spool
from .stack import build_client

SOME_FAILED: Final = 1
REFUSED: Final = 2
HALTED: Final = 3

_SYNC_EVERY: Final = 1.0


def say(message: str) -> None:
    """Write a line to stderr, if it is still open."""
    with suppress(OSError, ValueError, AttributeError):  # A stderr that is closed is None.
        sys.stderr.write(f"{message}\n")
        sys.stderr.flush()


def complain(message: str) -> None:
    """Report an error on stderr."""
    say(f"stkai batch: {message}")


def run_batch(options: Options) -> int:
    """Run the command; returns its exit code."""
    with Interrupts() as interrupts:
        try:
            if options.quiet:
                logging.getLogger("stkai").addHandler(logging.NullHandler())
            plan = Plan.of(options)
            if options.dry_run:
                from .dry_run import dry_run

                return 0 if dry_run(options, plan.form, say) else SOME_FAILED
            return _Job(plan, interrupts).run()
        except UsageError as error:
            complain(str(error))
            return REFUSED
        except WriteError as error:
            complain(f"{error}. Nothing was sent; free some disk space and run the command again")
            return HALTED
        except KeyboardInterrupt:
            complain("interrupted before anything was sent")
            return INTERRUPTED


def run_merge(outs: list[str], target: str) -> int:
    """Run the command `merge`; returns its exit code."""
    try:
        done, failed = merge(outs, target)
    except UsageError as error:
        complain(str(error))
        return REFUSED
    except WriteError as error:
        complain(str(error))
        return HALTED
    say(f"{done} done, {failed} failed")
    return SOME_FAILED if failed else 0


class _Job:
    """One run, with its files, its client and its display."""

    def __init__(self, plan: Plan, interrupts: Interrupts) -> None:
        self._plan, self._options, self._interrupts = plan, plan.options, interrupts
        self._clock = SystemClock()
        self._session: Session | None = None
        self._spool: Spool | None = None

    def run(self) -> int:
        intents = Intents()
        client = build_client(self._options, intents)
        logging.getLogger("stkai").addHandler(logging.NullHandler())  # The display shows this instead.
        with ExitStack() as stack:
            runner = self._prepare(intents, async_sender(client), stack)
            shown = display(quiet=self._options.quiet, say=say)
            stack.callback(shown.close)
            self._interrupts.on_second = shown.close
            anyio.run(self._work, runner, client, shown)
            shown.close()
            return self._finish(runner)

    # Before

    def _prepare(self, intents: Intents, send: Any, stack: ExitStack) -> Runner:
        options = self._options
        if options.to_stdout:
            return self._to_stdout(intents, send, stack)
        session = self._session = Session.open(options, options.facts(self._plan.template))
        stack.callback(session.close)
        known, header = session.known, session.journal.header
        assert header is not None
        if options.from_stdin:
            self._spool = Spool(session.paths.spool)
            if session.began:
                self._spool.start()
            else:
                self._spool.is_complete = True
                if not known.has_ended:
                    complain(
                        "stdin was cut off when an earlier run ended: only the lines copied by then are sent"
                    )
        intents.write_to(session.journal, options.sync)
        if not session.began:
            session.journal.limit(options.max_in_flight)
        lines = self._plan.lines(self._spool)
        return Runner(
            options, lines, self._plan.form, session.outputs, known, intents, send, key_of=_keys(header.job)
        )

    def _to_stdout(self, intents: Intents, send: Any, stack: ExitStack) -> Runner:
        if self._options.from_stdin:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stkai-batch-"))
            self._spool = Spool(Path(folder, "stdin.jsonl"))
            self._spool.start()
        in_order = self._options.order == "input"
        sink, lines = Stdout(in_order=in_order), self._plan.lines(self._spool)
        key_of = _keys(uuid.UUID(hex=unique_key(), version=4))
        return Runner(
            self._options,
            lines,
            self._plan.form,
            sink,
            Replay(Fates()),
            intents,
            send,
            key_of=key_of,
            order=sink if in_order else None,
        )

    # Meanwhile

    async def _work(self, runner: Runner, client: Any, shown: Display) -> None:
        loop = asyncio.get_running_loop()

        def interrupt(name: str) -> None:
            # Call through the loop to wake it; a closed loop has nothing left to end.
            with suppress(RuntimeError):
                loop.call_soon_threadsafe(runner.end, "interrupted", f"interrupted by {name}")

        self._interrupts.on_first = interrupt
        async with client, anyio.create_task_group() as group:
            group.start_soon(self._watch, runner, shown)
            await runner.run()
            group.cancel_scope.cancel()

    async def _watch(self, runner: Runner, shown: Display) -> None:
        """Show the progress, and sync the files every second if asked to."""
        synced = self._clock.monotonic()
        while True:
            await self._clock.asleep(shown.pause)
            now = self._clock.monotonic()
            shown.show(now, self._standing(runner))
            self._note_end_of_stdin(runner)
            if self._options.sync == "1s" and self._session is not None and now - synced >= _SYNC_EVERY:
                synced = now
                try:
                    await anyio.to_thread.run_sync(self._sync)
                except WriteError as error:
                    runner.end("halted", str(error))

    def _note_end_of_stdin(self, runner: Runner) -> None:
        """Record that all of stdin has been copied."""
        session, spool = self._session, self._spool
        if session is None or spool is None or not spool.is_complete or session.known.has_ended:
            return
        if session.began and spool.error is None:
            session.known.has_ended = True
            try:
                session.journal.input_ended()
            except WriteError as error:
                runner.end("halted", str(error))

    def _sync(self) -> None:
        assert self._session is not None
        self._session.journal.file.sync()
        self._session.outputs.sync()

    def _standing(self, runner: Runner) -> Standing:
        counts, size = runner.outputs.counts, self._plan.size
        waiting = sum(line.may_leave and line.execution is None for line in runner.lines_in_flight.values())
        return Standing(
            share=min(1.0, runner.lines.place / size) if size else None,
            finished=counts[DONE] + counts[FAILED],
            failed=counts[FAILED],
            waiting=waiting,
            tokens=runner.usage.text(self._options.price),
        )

    # After

    def _finish(self, runner: Runner) -> int:
        self._close_files(runner)
        ending, counts = runner.ending, runner.outputs.counts
        code = SOME_FAILED if counts[FAILED] else 0
        if ending is not None:
            code = HALTED if ending.kind == "halted" else INTERRUPTED
            again = "" if self._options.to_stdout else "; to continue, run the same command with --resume"
            complain(f"{ending.message}{again}")
        if not self._options.quiet or code:
            tokens = runner.usage.text(self._options.price)
            if tokens:
                say(tokens)
            say(f"{counts[DONE]} done, {counts[FAILED]} failed ({runner.unknown} unknown)")
        return code

    def _close_files(self, runner: Runner) -> None:
        session, spool = self._session, self._spool
        if spool is not None and spool.error is not None:
            runner.end("halted", f"{spool.error}; the rest of stdin is lost")
        if session is None:
            return
        self._note_end_of_stdin(runner)
        try:
            if self._options.sync != "never":
                self._sync()
            if self._options.order == "input" and runner.ending is None and not session.outputs.is_sorted:
                session.outputs.sort()
        except WriteError as error:
            runner.end("halted", str(error))


def _keys(job: uuid.UUID) -> Callable[[int], str]:
    """The idempotency key of each line: the same whenever the line is sent."""
    return lambda number: str(uuid.uuid5(job, f"line-{number}"))
