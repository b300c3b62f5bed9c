"""A job: opens, locks and reads its files, to start or resume it; a dry run only reads its input."""

import os
import tempfile
import uuid
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any, Final

from .._clock import unique_key
from .._config import STKAI
from .._errors import ConfigurationError
from .._log import logger
from ..costs import CHARACTERS_PER_TOKEN
from ..transports._operations import Run
from .input_lines import ALL_LINES, Lines, StdinCopy, Survey, ends_complete, json_lines, sha256
from .journal import Header, Journal, LineState, read_header
from .merge import sort_file
from .options import Options
from .outputs import FileOutputs, Outputs, Paths, StdoutOutputs, entries_in
from .progress import Usage, count, say, show_count, show_dollars
from .request_formats import Format, InvalidLineError
from .tracking import RunState

_MAX_PROBLEMS: Final = 20  # Lines that a dry run lists for each kind of problem.


class BatchJob(RunState):
    """A job that this process works on; no other process can until it is closed."""

    def __init__(self, options: Options, form: Format, stack: ExitStack) -> None:
        """Start or resume the job that writes to `-o`; the stack closes its files."""
        super().__init__()
        self.options, self.form, self._stack = options, form, stack
        self.id = uuid.UUID(hex=unique_key(), version=4)  # The namespace of the idempotency keys.
        self.usage, self._shard = Usage(), options.shard or ALL_LINES
        self.survey: Survey | None = None  # None until all of stdin has arrived.
        self.lines: Lines
        self.stdin: StdinCopy | None = None  # None if the input is a file.
        keeps_files = not (options.to_stdout or options.dry_run)
        self.outputs: Outputs = self._to_files() if keeps_files else self._to_stdout()

    def wants(self, number: int) -> bool:
        return self._shard.has(number) and super().wants(number)

    def _to_stdout(self) -> Outputs:
        folder = ""
        if self.options.from_stdin:
            folder = self._stack.enter_context(tempfile.TemporaryDirectory(prefix="stkai-batch-"))
        self._open_input(Path(folder, "stdin.jsonl"), resumes=False)
        return StdoutOutputs(in_order=self.options.order == "input")

    def _to_files(self) -> Outputs:
        options, paths = self.options, Paths.of(self.options.out or "")
        _check_paths(options, paths)
        is_job = paths.journal.exists() and read_header(paths.journal) is not None
        if options.from_stdin and paths.has_other_stdin:
            msg = f"{paths.stdin}, where stdin is copied to, is the output of another job: choose another name with -o"
            raise ConfigurationError(msg)
        for path in (paths.out, paths.failed):
            if path.exists() and not is_job and not options.restart:
                raise ConfigurationError(
                    f"{path} exists but has no journal next to it, so it is not the output of a job:"
                    " choose another name with -o, or pass --restart to overwrite it"
                )
        self.journal = journal = self._stack.enter_context(closing(Journal(paths.journal)))
        if journal.header is not None and not options.continues_job and not options.restart:
            msg = f"{paths.journal} is the journal of a job: pass --resume to continue it, or --restart to start over"
            raise ConfigurationError(msg)
        before = None if options.restart else journal.header
        if before is not None:
            _check_same(self._facts(), before, paths)
        self.id = (before or self._begin(journal, paths)).job
        if options.sync == "always":
            self.commit = Run(lambda _: journal.sync(), lambda _: journal.commit())
        outputs = self._stack.enter_context(closing(FileOutputs(paths)))
        self.recovered = journal.recover(outputs.read())
        self.usage = Usage(*self.recovered.usage)
        self._open_input(paths.stdin, resumes=before is not None)
        if options.retry_failed:
            # If the process is killed before the truncation, they are still failures; after it, they are new.
            for number, _ in entries_in(outputs.failures.path):
                journal.write("n", number)
                self.recovered.states[number] = LineState.NEW
            outputs.failures.truncate()
            outputs.codes.clear()
        return outputs

    def _begin(self, journal: Journal, paths: Paths) -> Header:
        options, before = self.options, journal.header
        has_copy = before is not None and before.facts.get("input") == "stdin"
        survey = None if options.from_stdin else options.survey(Path(options.source))
        # In this order, so that a kill in between leaves either a complete job or none.
        journal.truncate()
        for path in (paths.out, paths.failed):
            if path.exists():  # Truncate it instead of replacing it, so that it keeps its mode.
                os.truncate(path, 0)
        if (options.from_stdin or has_copy) and not paths.has_other_stdin:
            paths.stdin.unlink(missing_ok=True)
        if options.from_stdin:  # A resumed job refuses to continue without the copy, even if it is empty.
            paths.stdin.touch()
        return journal.begin("batch", self._facts(), survey)

    def _facts(self) -> dict[str, Any]:
        source = "stdin" if self.options.from_stdin else "file"
        return {"options": self.options.facts(self.form.template), "input": source}

    def _open_input(self, copy: Path, *, resumes: bool) -> None:
        """Read the file, or stdin while it is being copied, or what earlier runs have copied of it."""
        options, survey = self.options, self.recovered.survey
        source = copy if options.from_stdin else Path(options.source)
        if resumes:
            _check_unchanged(source, survey, is_copy=options.from_stdin)
        if options.from_stdin and survey is None:
            if resumes:
                logger.warning(
                    "stdin was cut off when an earlier run ended: the lines that were copied are sent, and the rest"
                    " only if all of stdin is passed again"
                )
            self.stdin = StdinCopy(source, self._shard, resumes=resumes)
            self.lines = self._learning(json_lines(source, copy=self.stdin))
            self.stdin.start()
            return
        if survey is None or source.stat().st_size > survey.size:
            survey = options.survey(source)
            self.record("i", *survey)
        if options.from_stdin and resumes:
            logger.warning("stdin is not read: an earlier run has copied all of it to %s", source)
        self.survey, self.lines = survey, self._learning(options.lines(source, survey.size))

    def _learning(self, lines: Lines) -> Lines:
        """The lines; the members of the first one are columns of the template."""
        template = None if self.options.is_csv else self.form.template
        with closing(lines):
            for item in lines:
                if item is not None and template is not None:
                    with suppress(InvalidLineError):
                        template.use_columns(item[1]() or ())
                    template = None
                yield item

    def note(self) -> None:
        """Record the survey of the input, once all of stdin has arrived, and the tokens used so far."""
        stdin = self.stdin
        if self.survey is None and stdin is not None and stdin.survey is not None and not stdin.is_cut_off:
            self.survey = stdin.survey
            self.record("i", *self.survey)
        if self.usage != self.recovered.usage:
            self.recovered.usage = self.usage
            self.record("u", *self.usage)

    def sync(self) -> None:
        if self.journal is not None:
            self.journal.sync()
        self.outputs.sync()

    def sort(self) -> None:
        if isinstance(self.outputs, FileOutputs):
            for file in (self.outputs.answers, self.outputs.failures):
                sort_file(file.path)


def _check_paths(options: Options, paths: Paths) -> None:
    """Refuse outputs that cannot be written, or would overwrite the input."""
    paths.check_folder()
    places = [Path(os.path.realpath(path)) for path in paths]
    for path, place in zip(paths, places, strict=True):
        if path.exists() and not path.is_file():
            raise ConfigurationError(f"{path} is not a file: choose another name with -o")
        if path.is_symlink() and places.count(place) > 1:
            raise ConfigurationError(
                f"{path} is a link to another file of the job: remove it, or choose another name with -o"
            )
        if not os.access(path if path.exists() else place.parent, os.W_OK):
            raise ConfigurationError(
                f"{path} cannot be written: choose another name with -o, or change its permissions"
            )
        for given in (options.source, options.body):
            if given is not None and path.exists() and Path(given).exists() and path.samefile(given):
                raise ConfigurationError(
                    f"{path} is both an input and an output: choose another name with -o"
                )


def _check_same(facts: dict[str, Any], header: Header, paths: Paths) -> None:
    """Refuse options that differ from those of the job that the journal belongs to."""
    if header.kind != "batch":
        raise ConfigurationError(
            f"{paths.journal} is the journal of a program that uses stkai.send_all: choose another name with -o"
        )
    before = {**header.facts.get("options", {}), "INPUT": header.facts.get("input")}
    for name, value in {**facts["options"], "INPUT": facts["input"]}.items():
        if before.get(name) != value:
            shown = (
                "" if name in {"--base-url", "--body"} else f": it was {before.get(name)!r}, not {value!r}"
            )
            msg = f"{name} has changed since the job began{shown}; pass the old value, or --restart to start over"
            raise ConfigurationError(msg)


def _check_unchanged(source: Path, before: Survey | None, *, is_copy: bool) -> None:
    """Refuse an input that has changed, other than by lines added at the end."""
    what = f"the copy of stdin {source}" if is_copy else str(source)
    restore = "restore it, or pass --restart to start over"
    if not source.is_file():
        raise ConfigurationError(f"{what} is missing: {restore}")
    if before is None:  # The earlier run ended before it had read all of stdin.
        return
    is_same = source.stat().st_size >= before.size and sha256(source, before.size) == before.sha256
    if not (is_same and ends_complete(source, before.size)):
        raise ConfigurationError(
            f"{what} has changed since the job began, other than by lines added after a line break: {restore}"
        )


def dry_run(job: BatchJob) -> bool:
    """Report on the input; returns whether every line is a valid request."""
    STKAI.provenance()  # Raises the errors that a run would raise.
    if job.stdin is not None:
        job.stdin.join()
        if job.stdin.error is not None:
            raise job.stdin.error
    options, form = job.options, job.form
    invalid = duplicates = requests = size = 0
    first: dict[int, int] = {}  # The first line with each id, by the id's hash.
    for item in job.lines:
        if item is None or not job.wants(item[0]):
            continue
        number, read = item
        where = options.place(number)
        try:
            values = read()
            own_id, target = form.custom_id(values), form.target(values)
        except InvalidLineError as error:
            invalid += 1
            if invalid <= _MAX_PROBLEMS:
                say(f"{where}: {error}")
            continue
        requests += 1
        size += len(target.content or b"")
        earlier = number if own_id == "null" else first.setdefault(hash(own_id), number)
        if earlier != number:
            duplicates += 1
            if duplicates <= _MAX_PROBLEMS:
                say(f"{where}: duplicate custom_id {own_id}, as in line {earlier}")
    if duplicates:
        say(f"{count(duplicates, 'duplicate id')}, which is allowed; use `id` to tell the lines apart")
    if invalid:
        say(f"{count(invalid, 'invalid line')} would be reported as failed")
    tokens, price = size / CHARACTERS_PER_TOKEN, options.price
    cost = "" if price is None else f", {show_dollars(price.dollars(round(tokens), 0))} for the input alone"
    say(
        f"{count(requests, 'request')}, {show_count(size)} bytes, about {show_count(tokens)} input tokens{cost}"
    )
    return not invalid
