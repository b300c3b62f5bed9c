"""The documentation is true: its examples run, and the things it names exist.

Examples run as printed. Any service they call is the embedded server, and time is virtual, so that they may wait.
`<!-- skip: next -->` before a block leaves it out; `<!-- invisible-code-block: python ... -->` runs what readers need
not see. A block may `await` at its top level, as in a notebook.
"""

import ast
import asyncio
import inspect
import logging
import os
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import FunctionType
from typing import Any

import httpx
import pytest
from sybil import Document, Example
from sybil.parsers.markdown import CodeBlockParser, SkipParser

import stkai
import stkai.events
import stkai.limiters
import stkai.stores
import stkai.testing
import stkai.transports
import stkai.wires
from stkai.testing import FakeClock, QuotaServer

pytestmark = pytest.mark.no_cover

ROOT = Path(__file__).parent.parent
PAGES = [*sorted((ROOT / "docs").glob("**/*.md")), ROOT / "README.md", ROOT / "CONTRIBUTING.md"]

SOURCE = ROOT / "src" / "stkai"

TOKEN_PATH = httpx.URL(stkai.ClientCredentialsAuthProvider.DEFAULT_TOKEN_URL).path


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Credentials in the environment; every host name leads to the embedded server, and nobody really sleeps."""
    with QuotaServer(max_requests=1000, time_window=1.0) as server:
        here = httpx.URL(server.url)

        def reroute(request: httpx.Request) -> httpx.Request:
            if request.url.host == here.host:
                return request
            url = (
                server.token_url
                if request.url.path == TOKEN_PATH
                else here.join(request.url.raw_path.decode())
            )
            return httpx.Request(
                request.method,
                url,
                headers=request.headers,
                stream=request.stream,
                extensions=request.extensions,
            )

        send, asend = httpx.HTTPTransport.handle_request, httpx.AsyncHTTPTransport.handle_async_request
        monkeypatch.setattr(
            httpx.HTTPTransport, "handle_request", lambda self, request: send(self, reroute(request))
        )
        monkeypatch.setattr(
            httpx.AsyncHTTPTransport,
            "handle_async_request",
            lambda self, request: asend(self, reroute(request)),
        )
        monkeypatch.setenv("STKAI_AUTH_CLIENT_ID", server.client_id)
        monkeypatch.setenv("STKAI_AUTH_CLIENT_SECRET", server.client_secret)
        clock = FakeClock()
        for name in ("monotonic", "utcnow", "sleep", "asleep"):
            monkeypatch.setattr(stkai.SystemClock, name, getattr(clock, name))
        monkeypatch.chdir(tmp_path)
        root, own = logging.getLogger(), logging.getLogger("stkai")
        handlers, levels = root.handlers[:], (root.level, own.level)
        yield
        root.handlers[:] = handlers
        for logger, level in zip((root, own), levels, strict=True):
            logger.setLevel(level)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
@pytest.mark.usefixtures("service")
def test_the_examples_of_a_page_run_one_after_the_other(page: Path) -> None:
    with asyncio.Runner() as runner:

        def evaluate(example: Example) -> None:
            lines_before = "\n" * (example.line + example.parsed.line_offset)
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            code = compile(lines_before + example.parsed, example.path, "exec", flags, dont_inherit=True)
            awaited = FunctionType(code, example.namespace)()
            if inspect.iscoroutine(awaited):
                runner.run(awaited)

        document = Document.parse(str(page), CodeBlockParser("python", evaluate), SkipParser())
        try:
            for example in document.examples():
                example.evaluate()
        finally:
            close_clients(document.namespace)


def close_clients(namespace: dict[str, Any]) -> None:
    """Allow short examples to leave their clients open, as a program may until it ends."""
    for value in namespace.values():
        if isinstance(value, stkai.HttpClient | httpx.Client | httpx.BaseTransport):
            value.close()


def test_the_code_that_replaces_other_libraries_runs() -> None:
    page = (ROOT / "docs" / "migration.md").read_text()
    section = page.partition("## From other libraries")[2].partition("\n## ")[0]
    replaced = [row.split(" | ")[1] for row in section.splitlines() if row.startswith("| ")]
    codes = re.findall(r"`(stkai\.[^`]*\))`", "".join(replaced))
    made = [eval(code, {"stkai": stkai, "rpm": 500, "tpm": 200_000}) for code in codes]  # noqa: S307
    assert len(made) >= 9
    for transport in made:
        if isinstance(transport, httpx.BaseTransport):
            transport.close()


def test_every_python_block_of_a_page_is_marked_so_that_it_runs() -> None:
    opened = found_on_pages(r"^[ \t>]*[`~]{3,}[ \t]*(?:python|py|pycon)\b.*$")
    assert [line for line in opened if not re.fullmatch(r"[ \t>]*```python", line)] == []


def found_on_pages(pattern: str) -> dict[str, str]:
    """What a pattern finds on all pages, and where last."""
    return {
        found: str(page) for page in PAGES for found in re.findall(pattern, page.read_text(), re.MULTILINE)
    }


def test_the_scripts_and_extras_that_pages_name_exist() -> None:
    scripts = found_on_pages(r"\bscripts/\w+|\.ci/\w+")
    assert {name: page for name, page in scripts.items() if not os.access(ROOT / name, os.X_OK)} == {}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    named = found_on_pages(r"\bstkai\[([\w,]+)\]")
    assert {names: page for names, page in named.items() if not set(names.split(",")) <= extras.keys()} == {}


def test_the_variables_that_pages_name_are_settings() -> None:
    named = found_on_pages(r"\bSTKAI(?:_[A-Z0-9]+){2,}\b")
    assert {name: page for name, page in named.items() if name not in variables()} == {}


def test_the_messages_on_the_troubleshooting_page_are_those_of_the_source() -> None:
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    headings = re.findall(r"^### `(.*)`$", page, re.MULTILINE)
    assert len(headings) > 30
    source = messages()
    # A message may be composed: each piece of it must be somewhere in the source.
    pieces = {piece.strip() for heading in headings for piece in re.split("…|; ", heading)}
    assert {piece for piece in pieces if not any(piece in message for message in source)} == set()


def messages() -> list[str]:
    """Every string in the source."""
    return [
        node.value
        for path in SOURCE.rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]


@pytest.mark.parametrize("page", ["docs/architecture.md", "CONTRIBUTING.md"])
def test_the_files_that_pages_for_contributors_name_exist(page: str) -> None:
    named = re.findall(r"`([\w./]+/|[\w./]+\.(?:py|md|toml|lua))`", (ROOT / page).read_text())
    assert len(named) > 20
    source = [path.relative_to(ROOT).as_posix() + "/" * path.is_dir() for path in SOURCE.rglob("*")]
    missing = {
        name
        for name in named
        if "NAME" not in name and "_hedge" not in name and not (ROOT / name).exists()
        if not any(path.endswith(f"/{name}") for path in source)
    }
    assert missing == set()


def test_the_architecture_page_has_a_line_for_every_file() -> None:
    """It sums up the commands, each of which is a file of `_cli/`."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    named = set(re.findall(r"`([\w/]+\.(?:py|lua))`", text))
    files = [path.relative_to(SOURCE) for path in SOURCE.rglob("*") if path.suffix in {".py", ".lua"}]
    unnamed = {
        str(path)
        for path in files
        if not path.name.startswith("__") and path.parts[0] != "_cli" and not named & suffixes_of(path)
    }
    assert unnamed == set()


def suffixes_of(path: Path) -> set[str]:
    """The ways to name a file: `c.py`, `b/c.py`, `a/b/c.py`."""
    return {"/".join(path.parts[start:]) for start in range(len(path.parts))}


def test_the_architecture_page_names_everything_at_the_top_of_the_tree() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text()
    top = {path.name + "/" * path.is_dir() for path in SOURCE.iterdir()}
    assert {name for name in top if f"`{name}" not in text} <= {"__main__.py", "__pycache__/", "py.typed"}


def test_every_relative_link_leads_to_a_file() -> None:
    broken = {}
    for page in [*PAGES, ROOT / "SECURITY.md", ROOT / "CHANGELOG.md"]:
        text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
        for link in re.findall(r"(?<!`)\]\(([^)\s]+)\)", text):
            path = link.partition("#")[0]
            if path and not re.match(r"[a-z]+:", link) and not (page.parent / path).exists():
                broken[link] = str(page)
    assert broken == {}


def test_no_page_and_no_metadata_leads_to_a_placeholder() -> None:
    """`.example` belongs to nobody (RFC 2606): good in an example's code, not as a link."""
    named = [*PAGES, ROOT / "pyproject.toml", ROOT / "zensical.toml"]
    links = {
        path.name: re.findall(r"\]\((https?://[^)]*\.example\b[^)]*)\)", path.read_text()) for path in named
    }
    assert {name: found for name, found in links.items() if found} == {}
    assert not re.search(r"_url|stkai\.example", (ROOT / "zensical.toml").read_text())


def test_the_readme_on_a_package_index_has_no_link_to_a_file() -> None:
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["metadata"]["hooks"]
    (change,) = config["fancy-pypi-readme"]["substitutions"]
    shown = re.sub(change["pattern"], change["replacement"], (ROOT / "README.md").read_text())
    assert all(link.startswith(("https://", "#")) for link in re.findall(r"\]\(([^)]*)\)", shown))
    assert "CONTRIBUTING.md" in shown


def test_every_setting_is_on_the_settings_page() -> None:
    text = (ROOT / "docs" / "settings.md").read_text()
    assert {name for name in variables() if f"`{name}`" not in text} == set()


@cache
def variables() -> set[str]:
    return {"STKAI_ENV_FILE", *(row.variable for row in stkai.STKAI.provenance())}


MODULES = [
    stkai,
    stkai.costs,
    stkai.events,
    stkai.limiters,
    stkai.stores,
    stkai.telemetry,
    stkai.testing,
    stkai.transports,
    stkai.wires,
]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_every_public_name_is_in_the_api_reference(module: Any) -> None:
    text = "".join(page.read_text() for page in (ROOT / "docs" / "reference").glob("*.md"))
    documented = {
        each: set(re.findall(rf"^::: {re.escape(each.__name__)}\.(\w+)$", text, re.MULTILINE))
        for each in MODULES
    }
    # Some names are in several modules; their description is in one place.
    elsewhere = {name for each in MODULES if each is not module for name in documented[each]}
    assert documented[module] <= set(module.__all__) <= documented[module] | elsewhere


def test_the_navigation_lists_exactly_the_pages_that_exist() -> None:
    def pages(entry: Any) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        else:
            for child in entry.values() if isinstance(entry, dict) else entry:
                yield from pages(child)

    listed = sorted(pages(tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]))
    assert listed == sorted(str(page.relative_to(ROOT / "docs")) for page in (ROOT / "docs").glob("**/*.md"))
