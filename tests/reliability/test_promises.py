"""The table of promises is true: each names tests that exist, and no test in this folder is left out."""

import re
from pathlib import Path

TESTS = Path(__file__).parent.parent
PAGE = TESTS.parent / "docs" / "reliability.md"


def names_in(files: list[Path]) -> set[str]:
    """The names of the tests in some files."""
    text = "".join(file.read_text() for file in files)
    return set(re.findall(r"^ *(?:async )?def (test_\w+)", text, re.MULTILINE))


def promises() -> dict[str, list[str]]:
    """Each promise on the page, with its tests."""
    tables = re.findall(r"^\| promise \|.*\n\|.*\n((?:\|.*\n)+)", PAGE.read_text(), re.MULTILINE)
    rows = re.findall(r"^\| (.+?) \| (.+) \|$", "".join(tables), re.MULTILINE)
    return {promise: re.findall(r"`(test_\w+)`", held_by) for promise, held_by in rows}


def test_every_promise_has_a_test() -> None:
    assert len(promises()) > 30
    assert [promise for promise, tests in promises().items() if not tests] == []


def test_every_test_named_by_a_promise_exists() -> None:
    named = {test for tests in promises().values() for test in tests}
    assert named - names_in(list(TESTS.rglob("test_*.py"))) == set()


def test_every_test_in_this_folder_belongs_to_a_promise() -> None:
    here = names_in([file for file in Path(__file__).parent.glob("test_*.py") if file != Path(__file__)])
    assert here - {test for tests in promises().values() for test in tests} == set()
