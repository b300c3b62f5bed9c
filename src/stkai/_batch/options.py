"""The options of the command, checked before anything is read or written."""

import hashlib
import re
import shlex
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final, Literal

import httpx

from .._checks import POSITIVE_COUNT, SOME_SECONDS, check_number
from .errors import UsageError
from .input_lines import ALL_LINES, Shard
from .json_text import Template
from .progress import Price
from .request_formats import Format, InvalidLineError, check_url, join_url

QUICK_COMMANDS: Final = "https://genai-code-buddy-api.stackspot.com"
"""Where StackSpot runs quick commands."""

_PLACEHOLDER: Final = re.compile(r"\{[^{}]+\}")
_ABOUT_ONE_RUN: Final = frozenset({"source", "out", "resume", "restart", "retry_failed", "dry_run"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Options:
    """The options of `stkai batch`, by their names there.

    Raises:
        UsageError: an option has a value that it cannot have, or two cannot go together.
    """

    source: str
    out: str | None
    base_url: str | None = None
    quick_command: str | None = None
    body: Path | None = None
    id_column: str | None = None
    shard: str | None = None
    max_in_flight: int = 32
    rpm: int | None = None
    tpm: int | None = None
    in_flight: int | None = None
    resume: bool = False
    restart: bool = False
    retry_failed: bool = False
    unknown: Literal["report", "resend"] = "report"
    order: Literal["done", "input"] = "done"
    halt_after: int = 20
    deadline: float | None = None
    price: Price | None = None
    sync: Literal["1s", "always", "never"] = "1s"
    no_auth: bool = False
    dry_run: bool = False
    quiet: bool = False

    def __post_init__(self) -> None:
        for name in ("resume", "retry_failed"):
            if getattr(self, name) and self.restart:
                option = name.replace("_", "-")
                msg = f"--{option} continues a job and --restart starts it over: pass only one of them"
                raise UsageError(msg)
        if self.out is None and not self.dry_run:
            raise UsageError("pass -o OUT, such as -o answers.jsonl, or -o - for stdout")
        if self.to_stdout and (self.goes_on or self.restart):
            raise UsageError("-o - keeps no files, so the job cannot be resumed: pass -o OUT")
        for name in ("rpm", "tpm", "in_flight"):
            count = getattr(self, name)
            if count is not None:
                check_number(f"--{name.replace('_', '-')}", count, POSITIVE_COUNT, error=UsageError)
        if self.deadline is not None:
            check_number("--deadline", self.deadline, SOME_SECONDS, error=UsageError)
        if self.is_csv and self.body is None:
            raise UsageError(
                f"{self.source} is a CSV file: pass --body TEMPLATE.json with {{column}} placeholders"
            )
        if self.quick_command is not None and not re.fullmatch(r"[\w.~-]+", self.quick_command, re.ASCII):
            raise UsageError(
                f"--quick-command must be the slug of a quick command, not {self.quick_command!r}"
            )
        self._check_base_url()
        _ = self.part  # Checks it.

    def _check_base_url(self) -> None:
        if self.base_url is None:
            if self.body is not None and self.quick_command is None:
                raise UsageError("--body needs a url: pass --base-url")
            return
        try:
            check_url(self.base_url, "--base-url")
        except InvalidLineError as error:
            raise UsageError(str(error)) from error
        if "#" in self.base_url:
            raise UsageError("--base-url must not contain a fragment: leave out what follows #")
        placeholder = _PLACEHOLDER.search(self.base_url)
        if placeholder is not None:
            msg = (
                f"--base-url contains {placeholder[0]}, but only strings of the --body template are filled in"
            )
            raise UsageError(msg)

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
    def goes_on(self) -> bool:
        """Whether to continue an existing job."""
        return self.resume or self.retry_failed

    @property
    def part(self) -> Shard:
        """The lines that this job sends."""
        if self.shard is None:
            return ALL_LINES
        found = re.fullmatch(r"([0-9]{1,9})/([0-9]{1,9})", self.shard)
        if found is None or not int(found[1]) < int(found[2]):
            msg = (
                f"--shard must be I/N with 0 <= I < N, such as 0/4 for the first of four, not {self.shard!r}"
            )
            raise UsageError(msg)
        return Shard(int(found[1]), int(found[2]))

    def url_of_commands(self, path: str) -> str:
        """Where quick commands are: `path` is what follows `/v1/quick-commands/`."""
        return join_url(self.base_url or QUICK_COMMANDS, f"/v1/quick-commands/{path}")

    def format(self, template: Template | None) -> Format:
        """How lines are read."""
        url = None if template is None else self.base_url
        if self.quick_command is not None:
            url = self.url_of_commands(f"create-execution/{self.quick_command}")
        return Format(base_url=self.base_url, url=url, template=template, id_name=self.id_column)

    def facts(self, template: Template | None) -> dict[str, Any]:
        """What changes the requests, and must stay what it was when the job began. Holds no secrets."""
        return {
            "--base-url": None if self.base_url is None else _digest(_without_user(self.base_url)),
            "--quick-command": self.quick_command,
            "--body": None if template is None else _digest(template.text),
            "--id-column": self.id_column,
            "--shard": None if self.shard is None else "{}/{}".format(*self.part),
        }

    def command(self, next_step: str) -> str:
        """The command line of this job with another option, such as `--resume`, for people to copy."""
        words = ["stkai", "batch", self.source, "-o", self.out or ""]
        for field in fields(self):
            value, option = getattr(self, field.name), f"--{field.name.replace('_', '-')}"
            if field.name in _ABOUT_ONE_RUN or value == field.default:
                continue
            if field.name == "base_url" and httpx.URL(value).userinfo:
                value = httpx.URL(value).copy_with(username="USER", password="PASSWORD")  # noqa: S106 - a stand-in
            words += [option] if value is True else [option, str(value)]
        return shlex.join([*words, next_step])


def _without_user(url: str) -> str:
    """The url without user and password, which may change and must stay secret."""
    return str(httpx.URL(url).copy_with(userinfo=b""))


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
