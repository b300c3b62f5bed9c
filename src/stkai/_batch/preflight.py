"""What is checked before anything is sent: the input and the template; and `--dry-run`, which stops there."""

import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from .._config import STKAI
from .._errors import ConfigurationError
from .input_lines import CsvRecords, JsonLines, Lines, StdinCopy
from .json_text import Template
from .options import Options
from .progress import count, show_count, show_dollars, show_time
from .request_formats import Format, InvalidLineError, Values

_SHOWN: Final = 20
"""How many lines to list for each kind of problem."""

_BYTES_PER_TOKEN: Final = 4


@dataclass(frozen=True, slots=True)
class JobPlan:
    """What a job reads, and how its lines become requests."""

    options: Options
    template: Template | None
    form: Format

    @classmethod
    def of(cls, options: Options) -> "JobPlan":
        """Check everything that can be checked without writing anything."""
        template = None if options.body is None else Template.read(options.body)
        if not options.from_stdin:
            path = Path(options.source)
            _check_file(path)
            first = {} if options.is_csv else _first_object(path)
            columns = CsvRecords(path).names if options.is_csv else list(first)
            if template is not None:
                template = Template(template.text, columns)
            if options.is_csv:
                _check_columns(path, columns, options, template)
            url = first["url"].value if "url" in first else None
            has_base = options.base_url or options.quick_command or template
            if isinstance(url, str) and "://" not in url and not has_base:
                raise ConfigurationError(f"{path}, line 1: the url is relative ({url}): pass --base-url")
        return cls(options, template, options.format(template))

    def lines(self, source: Path, size: int | None = None) -> Lines:
        """The lines of the first `size` bytes of the input, or of the copy of stdin."""
        return CsvRecords(source, size) if self.options.is_csv else JsonLines(source, size)


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # Opening a named pipe would wait for a writer.
        raise ConfigurationError(
            f"the input {path} cannot be read: it is not a file; for a pipe, pass - as the input"
        )
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError as error:
        raise ConfigurationError(f"the input {path} cannot be read: {error.strerror}") from error
    if b"\0" in start or start[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise ConfigurationError(f"the input {path} is in UTF-16 or UTF-32: save the file as UTF-8")


def _check_columns(path: Path, columns: list[str], options: Options, template: Template | None) -> None:
    wanted = {} if template is None else {name: f"the template uses {{{name}}}" for name in template.names}
    if options.id_column is not None:
        wanted[options.id_column] = f"--id-column {options.id_column}"
    for name, what in wanted.items():
        if name not in columns:
            raise ConfigurationError(f"{what}, but {path} has no such column; it has: {', '.join(columns)}")


def _first_object(path: Path) -> Values:
    """The members of the first line, if it has any."""
    with suppress(InvalidLineError):
        for item in JsonLines(path):
            return (None if item is None else item[1]()) or {}
    return {}


def dry_run(plan: JobPlan, say: Callable[[str], None]) -> bool:
    """Report on the input; whether every line is a valid request."""
    options = plan.options
    with tempfile.TemporaryDirectory(prefix="stkai-batch-") as folder:
        source = Path(options.source)
        if options.from_stdin:
            source = Path(folder, "stdin.jsonl")
            StdinCopy(source).copy()
        return _report(plan, plan.lines(source), say)


def _report(plan: JobPlan, lines: Lines, say: Callable[[str], None]) -> bool:
    options, shard = plan.options, plan.options.part
    invalid = duplicates = requests = size = 0
    first: dict[int, int] = {}  # The first line with an id, by the id's hash.
    for item in lines:
        if item is None or not shard.has(item[0]):
            continue
        number, read = item
        where = f"{options.source}, line {number}"
        try:
            target = plan.form.target(read())
        except InvalidLineError as error:
            invalid += 1
            if invalid <= _SHOWN:
                say(f"{where}: {error}")
            continue
        requests += 1
        size += len(target.content or b"")
        own_id = target.custom_id
        earlier = number if own_id == "null" else first.setdefault(hash(own_id), number)
        if earlier != number:
            duplicates += 1
            if duplicates <= _SHOWN:
                say(f"{where}: duplicate custom_id {own_id}, as in line {earlier}")
    if duplicates:
        say(f"{count(duplicates, 'duplicate id')}, which is allowed; use `id` to tell the lines apart")
    if invalid:
        say(f"{count(invalid, 'invalid line')}, which would be reported as failures")
    _estimate(options, requests, size, say)
    return not invalid


def _estimate(options: Options, requests: int, size: int, say: Callable[[str], None]) -> None:
    tokens, price = size / _BYTES_PER_TOKEN, options.prices
    cost = "" if price is None else f", {show_dollars(price.dollars(round(tokens), 0))} for the input alone"
    say(
        f"{count(requests, 'request')}, {show_count(size)} bytes, about {show_count(tokens)} input tokens{cost}"
    )
    limit = STKAI.config.rate_limit
    quotas = [(options.rpm, 60.0)]
    if limit.enabled:
        quotas.append((limit.max_requests, limit.time_window or 0.0))
    for most, window in quotas:
        if most and window and requests * window > most:  # It takes longer than a second.
            least = show_time(requests * window / most)
            say(f"at {count(most, 'request')} per {window:g} s: at least {least}")
