"""The options of the command, and how they make requests: both are checked before anything is written."""

import hashlib
import re
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Final, Literal

import httpx
import typer

from .._checks import POSITIVE_SECONDS, SAFE_RANGE, check_number
from .._errors import ConfigurationError
from .input_lines import ALL_LINES, Lines, Shard, Survey, csv_columns, csv_records, first_object, json_lines
from .progress import Price
from .request_formats import Format, Template, Values, is_absolute, join_url, url_of

QUICK_COMMANDS: Final = "https://genai-code-buddy-api.stackspot.com"
"""Where StackSpot runs quick commands."""

_UNWANTED: Final = re.compile(r"#|\{[^{}]+\}")


def _count(text: str, least: int = 1) -> Any:
    return typer.Option(metavar="N", min=least, help=text)


def _parsed_by(parse: Callable[[str], Any], metavar: str, text: str) -> Any:
    def parser(value: str) -> Any:
        try:
            return parse(value)
        except ConfigurationError as error:  # Typer puts its own words before those of a ValueError.
            raise typer.BadParameter(str(error)) from error

    return typer.Option(metavar=metavar, parser=parser, help=text)


PriceOption = Annotated[
    Price | None,
    _parsed_by(Price.parse, "PRICE", "Dollars per million tokens: input=0.15,output=0.6."),
]


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of `stkai batch`, as Typer reads them."""

    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="A .jsonl or .csv file, or - for JSONL from stdin.")
    ]
    out: Annotated[
        str | None, typer.Option("-o", "--out", metavar="OUT", help="Write answers here; - for stdout.")
    ] = None
    base_url: Annotated[str | None, typer.Option(metavar="URL", help="Base of relative URLs.")] = None
    quick_command: Annotated[str | None, typer.Option(metavar="SLUG", help="Run this quick command.")] = None
    body: Annotated[
        Path | None, typer.Option(metavar="FILE", help="JSON template; {column} in strings is replaced.")
    ] = None
    id_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column, or member, to use as custom_id.")
    ] = None
    shard: Annotated[
        Shard | None,
        _parsed_by(Shard.parse, "I/N", "Send only every Nth line; I is from 0 to N-1."),
    ] = None
    max_in_flight: Annotated[int, _count("Lines worked on at once, waiting or being sent.")] = 32
    rpm: Annotated[int | None, _count("Send at most this many requests per minute.")] = None
    tpm: Annotated[int | None, _count("Use at most this many tokens of a model per minute.")] = None
    in_flight: Annotated[int | None, _count("Have at most this many requests at the server.")] = None
    resume: Annotated[bool, typer.Option("--resume", help="Resume the job that writes OUT.")] = False
    restart: Annotated[bool, typer.Option("--restart", help="Start over and overwrite the outputs.")] = False
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Resume, and send the failed lines again.")
    ] = False
    unknown: Annotated[
        Literal["report", "resend"],
        typer.Option(help="What to do with lines that the server may have executed."),
    ] = "report"
    order: Annotated[Literal["done", "input"], typer.Option(help="Order of the outputs.")] = "done"
    halt_after: Annotated[int, _count("Halt after N equal failures in a row; 0: never.", 0)] = 20
    deadline: Annotated[
        float | None, typer.Option(metavar="SECONDS", help="Limit for each call, waits included.")
    ] = None
    price: PriceOption = None
    sync: Annotated[
        Literal["1s", "always", "never"], typer.Option(help="How often to flush files to disk.")
    ] = "1s"
    no_auth: Annotated[bool, typer.Option("--no-auth", help="Send no token.")] = False
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every line; send nothing.")] = False
    quiet: Annotated[bool, typer.Option("--quiet", help="Print errors only.")] = False

    def __post_init__(self) -> None:
        if self.continues_job and self.restart:
            raise ConfigurationError(
                "--resume and --retry-failed continue a job, and --restart starts it over: pass only one of them"
            )
        if self.out is None and not self.dry_run:
            raise ConfigurationError("pass -o OUT, such as -o answers.jsonl, or -o - for stdout")
        if self.to_stdout and (self.continues_job or self.restart):
            raise ConfigurationError(
                "-o - keeps no files, so there is no job to continue or restart: pass -o OUT"
            )
        if self.deadline is not None:
            check_number("--deadline", self.deadline, POSITIVE_SECONDS)
        for name, value in (("--rpm", self.rpm), ("--tpm", self.tpm)):
            if value is not None:
                check_number(name, value, SAFE_RANGE)
        if self.is_csv and self.body is None:
            raise ConfigurationError(
                f"{self.source} is a CSV file: pass --body TEMPLATE.json with {{column}} placeholders"
            )
        if self.quick_command is not None and not re.fullmatch(r"[\w.~-]+", self.quick_command, re.ASCII):
            raise ConfigurationError(
                f"--quick-command must be the slug of a quick command, not {self.quick_command!r}"
            )
        self._check_base_url()

    def _check_base_url(self) -> None:
        if self.base_url is None:
            if self.body is not None and self.quick_command is None:
                raise ConfigurationError("--body needs a URL: pass --base-url")
            return
        try:
            url_of(self.base_url)
        except ValueError as error:
            raise ConfigurationError(f"--base-url is not a URL: {error}") from error
        unwanted = _UNWANTED.search(self.base_url)
        if unwanted is not None:
            raise ConfigurationError(
                f"--base-url must not contain {unwanted[0]}: it has no fragment, and only --body has placeholders"
            )

    @property
    def from_stdin(self) -> bool:
        return self.source == "-"

    @property
    def to_stdout(self) -> bool:
        return self.out == "-"

    @property
    def is_csv(self) -> bool:
        return self.source.lower().endswith(".csv")

    @property
    def continues_job(self) -> bool:
        return self.resume or self.retry_failed

    def place(self, number: int) -> str:
        """Where the line with this number is, for messages."""
        return f"{self.source}, {'row' if self.is_csv else 'line'} {number}"

    def url_of_commands(self, path: str) -> str:
        """The URL of quick commands: `path` follows `/v1/quick-commands/`."""
        return join_url(self.base_url or QUICK_COMMANDS, f"/v1/quick-commands/{path}")

    def lines(self, source: Path, size: int | None = None) -> Lines:
        """The lines in the first `size` bytes of the input, or of the copy of stdin."""
        return csv_records(source, size) if self.is_csv else json_lines(source, size)

    def survey(self, source: Path) -> Survey:
        """Survey the input, or the copy of stdin, as it is now."""
        size = source.stat().st_size
        return Survey.of(source, size, self.lines(source, size), self.shard or ALL_LINES)

    def facts(self, template: Template | None) -> dict[str, Any]:
        """The options that determine the requests, and must not change during a job. Contains no secrets."""
        base = None
        if self.base_url is not None:  # Its user and password may change.
            base = _digest(str(httpx.URL(self.base_url).copy_with(userinfo=b"")))
        return {
            "--base-url": base,
            "--quick-command": self.quick_command,
            "--body": None if template is None else _digest(template.text),
            "--id-column": self.id_column,
            "--shard": None if self.shard is None else "{}/{}".format(*self.shard),
        }


def format_of(options: Options) -> Format:
    """How the lines become requests. Checks everything that can be checked without writing anything."""
    reads_stdin = options.from_stdin and not options.continues_job
    for name, is_used in (("stdin", reads_stdin), ("stdout", options.to_stdout)):
        if is_used and getattr(sys, name) is None:  # Another file would get its descriptor.
            raise ConfigurationError(f"{name} is closed: pass the name of a file instead of -")
    template = None if options.body is None else Template.read(options.body)
    first: Values = {}
    number = 0
    if not options.from_stdin:
        path = Path(options.source)
        _check_file(path)
        if not options.is_csv:
            number, first = first_object(path)
        elif template is not None:  # Always: the options require one.
            _check_columns(path, options, template)
    to = None if template is None else options.base_url
    if options.quick_command is not None:
        to = options.url_of_commands(f"create-execution/{options.quick_command}")
    url = None if to is None else url_of(to)
    relative = first["url"].value if "url" in first else None
    if isinstance(relative, str) and not is_absolute(relative) and not (options.base_url or url):
        raise ConfigurationError(
            f"{options.source}, line {number}: the url is relative ({relative}): pass --base-url"
        )
    return Format(base_url=options.base_url, url=url, template=template, id_name=options.id_column)


def _check_file(path: Path) -> None:
    if path.exists() and not path.is_file():  # Opening a named pipe would block until there is a writer.
        raise ConfigurationError(
            f"the input {path} cannot be read: it is not a file; for a pipe, pass - as the input"
        )
    with path.open("rb") as file:
        start = file.read(4)
    if start[:2] == b"\x1f\x8b":
        raise ConfigurationError(f"the input {path} is compressed: unpack it first")
    if b"\0" in start or start[:2] in {b"\xff\xfe", b"\xfe\xff"}:
        raise ConfigurationError(f"the input {path} is in UTF-16 or UTF-32: save the file as UTF-8")


def _check_columns(path: Path, options: Options, template: Template) -> None:
    columns = csv_columns(path)
    template.use_columns(columns)
    wanted = {name: f"the template uses {{{name}}}" for name in template.names}
    if options.id_column is not None:
        wanted[options.id_column] = f"--id-column {options.id_column}"
    # Excel writes semicolons where the comma is the decimal sign.
    hint = " (separate columns by commas)" if ";" in columns[0] or "\t" in columns[0] else ""
    for name, what in wanted.items():
        if name not in columns:
            raise ConfigurationError(
                f"{what}, but {path} has no such column; it has: {', '.join(columns)}{hint}"
            )


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
