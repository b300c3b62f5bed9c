"""The plan of a job: its input and format, checked before anything is written."""

import sys
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from .errors import UsageError
from .formats import Format, InvalidLineError
from .lines import CsvRecords, JsonLines, Lines
from .options import Options
from .spool import Spool
from .templates import Template


@dataclass(frozen=True, slots=True)
class Plan:
    """What a job reads, and in which format."""

    options: Options
    template: Template | None
    form: Format
    size: int

    @classmethod
    def of(cls, options: Options) -> "Plan":
        """Check everything that can be checked without writing anything.

        Raises:
            UsageError: the input or the template cannot be used.
        """
        _check_streams(options)
        template = None if options.body is None else Template.read(options.body)
        form = options.format(template)
        if options.from_stdin:
            return cls(options, template, form, 0)
        path = Path(options.source)
        size = _size(path)
        if options.is_csv:
            _check_columns(path, CsvRecords(path).names, template, options.id_column)
        elif options.base_url is None and options.quick_command is None:
            _check_first(path)
        return cls(options, template, form, size)

    def lines(self, spool: Spool | None = None) -> Lines:
        """The lines of the input."""
        if spool is not None:
            return JsonLines(spool.path, lambda: spool.is_complete)
        path = Path(self.options.source)
        return CsvRecords(path) if self.options.is_csv else JsonLines(path)


def _check_streams(options: Options) -> None:
    """Refuse closed streams: files and connections that we open will reuse their descriptors."""
    closed = "stdin" if options.from_stdin and sys.stdin is None else None
    if options.to_stdout and sys.stdout is None:
        closed = "stdout"
    if closed is not None:
        msg = f"{closed} is closed: redirect it, or pass a file instead of -"
        raise UsageError(msg)


def _size(path: Path) -> int:
    if path.is_fifo():  # Opening it would wait for a writer.
        raise _no_file(path)
    try:
        with path.open("rb"):
            size = path.stat().st_size
    except OSError as error:
        msg = f"the input {path} cannot be read: {error.strerror}"
        raise UsageError(msg) from error
    if not path.is_file():
        raise _no_file(path)
    return size


def _no_file(path: Path) -> UsageError:
    return UsageError(f"the input {path} is not a file: pass - and pipe it in")


def _check_columns(path: Path, names: list[str], template: Template | None, id_name: str | None) -> None:
    columns = ", ".join(names)
    for name in [] if template is None else template.names:
        if name not in names:
            raise UsageError(
                f"the template uses {{{name}}}, but {path} has no such column; it has: {columns}"
            )
    if id_name is not None and id_name not in names:
        raise UsageError(f"--id-column {id_name}: {path} has no such column; it has: {columns}")


def _check_first(path: Path) -> None:
    """Fail early if the first url is relative and there is no base url."""
    for item in JsonLines(path):
        if item is not None:
            with suppress(InvalidLineError):
                values = item[1]()
                url = None if values is None else values.get("url")
                if url is not None and isinstance(url.value, str) and "://" not in url.value:
                    msg = f"{path}, line {item[0]}: the url is relative ({url.value}): pass --base-url"
                    raise UsageError(msg)
            return
