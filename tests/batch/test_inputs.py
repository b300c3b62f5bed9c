"""Templates, CSV and the lines of an input."""

import gzip
import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stkai._batch.input_lines import csv_records, json_lines
from stkai._batch.outputs import body_of
from stkai._batch.request_formats import JsonValue, Template, members, one_line

from .job import Job, Server

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)

LINE = '{"url": "/x", "body": {}}\n'

pytestmark = pytest.mark.real_time


@pytest.fixture
def job(counting: Server, tmp_path: Path) -> Job:
    return Job(tmp_path, counting.url)


def filled(template: str, **values: Any) -> str:
    return Template(template).fill(
        {name: JsonValue(value, json.dumps(value)) for name, value in values.items()}
    )


@pytest.mark.parametrize(
    ("template", "values", "body"),
    [
        ('{"text": "{a}"}', {"a": 'a "quoted"\n{b} \\ é'}, {"text": 'a "quoted"\n{b} \\ é'}),
        ('{"text": "{a}{b} {a}"}', {"a": "x", "b": "{a}"}, {"text": "x{a} x"}),
        (
            '{"text": "{n} apples", "j": "{o}"}',
            {"n": 3, "o": {"a": [1.5]}},
            {"text": "3 apples", "j": '{"a": [1.5]}'},
        ),
        ('{"{a}": "{ a } {} {a b} {{a}}"}', {"a": "x"}, {"{a}": "{ a } {} {a b} {x}"}),
        ('["{á-1.b_c}", "\\u007ba}"]', {"á-1.b_c": "x", "a": "y"}, ["x", "y"]),
        ('{"none": null, "t": "{a}"}', {"a": None}, {"none": None, "t": "null"}),
        ('"{a}"', {"a": True}, "true"),
    ],
)
def test_placeholders_are_replaced_inside_strings_only_and_after_parsing(
    template: str, values: dict[str, Any], body: Any
) -> None:
    assert json.loads(filled(template, **values)) == body


def test_everything_else_in_a_template_is_unchanged() -> None:
    template = '{"z": 1.0, "a": [1E5, "\\u00e9"],  "t": "x"}'
    assert filled(template) == template


@pytest.mark.parametrize("name", ["How satisfied are you " * 20, "Your answer\n(one line)"])
def test_the_name_of_a_column_may_be_long_and_have_several_lines(name: str) -> None:
    assert json.loads(filled(json.dumps([f"Q: {{{name}}}"]), **{name: "very"})) == ["Q: very"]


@given(st.text(), JSON)
def test_any_text_can_be_put_into_a_template(text: str, rest: Any) -> None:
    template = Template(json.dumps({"text": "a {x} b", "rest": rest}))
    values = {name: JsonValue("", "") for name in template.names} | {"x": JsonValue(text, "")}
    assert json.loads(template.fill(values))["text"] == f"a {text} b"


@given(st.dictionaries(st.text(), JSON, max_size=5), st.sampled_from([None, 2]))
def test_the_members_of_an_object_keep_their_text(value: dict[str, Any], indent: int | None) -> None:
    text = json.dumps(value, indent=indent)
    found = members(text)
    assert found is not None
    assert {name: json.loads(part.text) for name, part in found.items()} == value


@given(st.text(alphabet='{}[]:,"1ab \n', max_size=12))
def test_invalid_json_is_refused(text: str) -> None:
    try:
        value = json.loads(text)
    except ValueError:
        with pytest.raises(ValueError, match=r"."):
            members(text)
        return
    found = members(text)
    assert (None if found is None else set(found)) == (set(value) if isinstance(value, dict) else None)


@given(JSON)
def test_json_on_one_line_means_the_same(value: Any) -> None:
    for indent in (None, 1):
        text = one_line(json.dumps(value, indent=indent, ensure_ascii=False))
        assert json.loads(text) == value
        assert len(text.splitlines()) <= 1 or not {"\n", "\r", "\u2028", "\u2029", "\x85"} & set(text)


def test_numbers_of_any_length_pass() -> None:
    number = "9" * 10_000
    assert filled(number) == number
    assert body_of(httpx.Response(200, text=number)).text == number
    assert members(f'{{"n": {number}}}') == {"n": JsonValue(math.inf, number)}


def test_a_csv_becomes_requests_and_its_cells_need_no_escaping(
    job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "prompts.csv").write_bytes(
        b'\xef\xbb\xbfname,prompt,id\r\nann,"say ""hi"",\r\nthen {name}",1\r\n\r\nb\xc3\xb6b,plain,2\r\n'
    )
    (tmp_path / "body.json").write_text('{"model": "m", "prompt": "{name}: {prompt}", "n": 1.0}')
    result = job.run(
        "prompts.csv", "--body", "body.json", "--id-column", "id", "--base-url", f"{job.url}/v1/chat"
    )
    assert result.returncode == 0, result.stderr
    assert sorted(seen.body.decode() for seen in counting.seen) == [
        '{"model": "m", "prompt": "ann: say \\"hi\\",\\r\\nthen {name}", "n": 1.0}',
        '{"model": "m", "prompt": "böb: plain", "n": 1.0}',
    ]
    assert {(seen.method, seen.path) for seen in counting.seen} == {("POST", "/v1/chat")}
    assert {number: entry["custom_id"] for number, entry in job.done().items()} == {1: "1", 2: "2"}


def test_rows_that_do_not_fit_fail_alone(job: Job, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_bytes(b'a,b\n1,2\nonly\n1,2,3\n"x"y,2\nbad \xff,2\n5,6\n"\n\n7')
    (tmp_path / "body.json").write_text('{"text": "{a}{b}"}')
    assert job.run("prompts.csv", "--body", "body.json").returncode == 1
    assert sorted(job.done()) == [1, 6]
    messages = {number: entry["error"]["message"] for number, entry in job.failures().items()}
    assert "'b'" in messages[2]
    assert "3 cells" in messages[3]
    assert "prompts.csv, row 4: ',' expected after '\"', in line 5 of the file" in messages[4]
    assert "UTF-8" in messages[5]
    assert "in lines 8 to 10 of the file" in messages[7]
    assert set(job.codes().values()) == {"invalid_line"}


def test_an_id_that_is_not_utf_8_fails_alone(job: Job, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_bytes(b"id,text\nbad \xff,1\ngood,2\n")
    (tmp_path / "body.json").write_text('{"text": "{text}"}')
    assert job.run("prompts.csv", "--body", "body.json", "--id-column", "id").returncode == 1
    assert (list(job.done()), job.codes()) == ([2], {1: "invalid_line"})
    assert job.failures()[1]["custom_id"] is None


def test_a_cell_of_any_size_is_read(tmp_path: Path) -> None:
    path = tmp_path / "big.csv"
    path.write_text("a\n" + "x" * 1_000_000 + "\n")
    ((_, read),) = [item for item in csv_records(path) if item]
    values = read()
    assert values is not None
    assert len(values["a"].value) == 1_000_000


@pytest.mark.parametrize(("text", "says"), [("", "no header"), ("\n1\n", "no header"), ("a,b,a\n", "'a'")])
def test_a_csv_needs_a_header_with_unique_names(text: str, says: str, job: Job, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text(text)
    (tmp_path / "body.json").write_text("{}")
    result = job.run("x.csv", "--body", "body.json")
    assert (result.returncode, says in result.stderr) == (2, True)


def test_columns_without_a_name_are_ignored(job: Job, counting: Server) -> None:
    (job.folder / "x.csv").write_text("a,,\n1,,\n2,3,4\n")
    (job.folder / "body.json").write_text('{"a": "{a}"}')
    assert job.run("x.csv", "--body", "body.json").returncode == 0
    assert sorted(body["a"] for body in counting.bodies) == ["1", "2"]


def test_objects_go_through_a_template_and_incomplete_ones_fail_alone(
    job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "body.json").write_text('{"q": "{question}", "data": "{data}"}')
    lines = [
        '{"custom_id": 7, "question": "why?", "data": {"x": 1.50}}',
        '{"custom_id": 8, "question": "how?"}',
        "[1]",
        '{"question": "", "data": "text"}',
    ]
    job.input.write_text("\n".join(lines))
    assert job.run("--body", "body.json").returncode == 1
    assert sorted(seen.json()["data"] for seen in counting.seen) == ["text", '{"x": 1.50}']
    assert {number: entry["custom_id"] for number, entry in job.done().items()} == {1: 7, 4: None}
    assert {number: entry["custom_id"] for number, entry in job.failures().items()} == {2: 8, 3: None}
    assert job.run("--body", "body.json", "--id-column", "question", "-o", "other").returncode == 1


def test_half_of_an_emoji_is_put_into_a_template_as_it_was_escaped(job: Job, counting: Server) -> None:
    (job.folder / "body.json").write_text(r'{"q": "{question}, \ude00"}')
    job.input.write_text(r'{"question": "why \ud83d"}')
    assert job.run("--body", "body.json").returncode == 0
    assert [seen.body for seen in counting.seen] == [rb'{"q": "why \ud83d, \ude00"}']


def test_a_line_without_the_id_column_fails_alone(job: Job) -> None:
    job.input.write_text('{"key": [1], "url": "/x", "body": {}}\n{"custom_id": 1, "url": "/x", "body": {}}\n')
    assert job.run("--id-column", "key").returncode == 1
    assert job.done()[1]["custom_id"] == [1]
    assert "--id-column" in job.failures()[2]["error"]["message"]


def test_lines_are_awaited_while_the_input_still_grows(tmp_path: Path) -> None:
    path = tmp_path / "grows.jsonl"
    path.write_bytes(b'{"a": 1}\n{"b"')
    copy: Any = SimpleNamespace(is_alive=lambda: True, is_cut_off=False)
    lines = iter(json_lines(path, copy=copy))
    first = next(lines)
    assert first is not None
    assert first[0] == 1
    assert next(lines) is None
    with path.open("ab") as file:
        file.write(b": 2}\n\n3")
    second = next(lines)
    assert second is not None
    assert second[0] == 2
    assert next(lines) is None
    copy.is_alive = lambda: False
    rest = list(lines)
    assert [item and item[0] for item in rest] == [4]


def test_the_body_of_an_answer_in_another_encoding_is_read() -> None:
    assert body_of(httpx.Response(200, content='{"a": "é"}'.encode("utf-16"))).value == {"a": "é"}
    assert json.loads(body_of(httpx.Response(200, content=b"\xff\xfe\x00")).text)


def test_a_column_with_a_space_in_its_name_is_a_placeholder(
    job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("first name,e-mail (work)\nAnn,ann@example.com\n")
    (tmp_path / "body.json").write_text(
        '{"t": "{first name}: {e-mail (work)}, {yes or no} {} { first name } {\\"name\\": 1}"}'
    )
    assert job.run("people.csv", "--body", "body.json").returncode == 0
    text = 'Ann: ann@example.com, {yes or no} {} { first name } {"name": 1}'
    assert counting.bodies == [{"t": text}]


@pytest.mark.parametrize("source", ["in.jsonl", "-"])
def test_a_member_of_the_first_line_with_a_space_in_its_name_is_a_placeholder_in_all_lines(
    source: str, job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "body.json").write_text('{"t": "{first name}"}')
    job.input.write_text('{"first name": "Ann"}\n{"first name": "Bob"}\n{}\n')
    assert job.run(source, "--body", "body.json", stdin=job.input.read_bytes()).returncode == 1
    assert sorted(body["t"] for body in counting.bodies) == ["Ann", "Bob"]
    assert job.codes() == {3: "invalid_line"}


def test_members_with_spaces_are_put_in_from_stdin_as_well(
    job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "body.json").write_text('{"t": "{first name}, {yes or no}"}')
    assert job.run("-", "--body", "body.json", stdin=b'{"first name": "Ann"}\n').returncode == 0
    assert counting.bodies == [{"t": "Ann, {yes or no}"}]


@pytest.mark.parametrize(
    ("placeholder", "says"),
    [("{firstname}", "no such column"), ("{Name}", "no such column"), ("{last-name}", "it has: first name")],
)
def test_a_placeholder_that_no_column_fills_is_refused_before_anything_is_sent(
    placeholder: str, says: str, job: Job, counting: Server, tmp_path: Path
) -> None:
    (tmp_path / "people.csv").write_text("first name\nAnn\n")
    (tmp_path / "body.json").write_text(json.dumps({"t": placeholder}))
    result = job.run("people.csv", "--body", "body.json")
    assert (result.returncode, says in result.stderr) == (2, True)
    assert (counting.seen, job.journal.exists()) == ([], False)


def test_columns_separated_by_semicolons_are_refused_with_the_remedy(job: Job, tmp_path: Path) -> None:
    (tmp_path / "products.csv").write_text("sku;name\nA-1;Kettle\n")
    (tmp_path / "body.json").write_text('{"t": "{name}"}')
    result = job.run("products.csv", "--body", "body.json")
    assert (result.returncode, "it has: sku;name (separate columns by commas)" in result.stderr) == (2, True)


def test_a_placeholder_in_the_base_url_is_refused(job: Job, tmp_path: Path) -> None:
    (tmp_path / "people.csv").write_text("id\n1\n")
    (tmp_path / "body.json").write_text("{}")
    result = job.run("people.csv", "--body", "body.json", "--base-url", f"{job.url}/users/{{id}}")
    assert (result.returncode, "{id}" in result.stderr) == (2, True)


@pytest.mark.parametrize("name", ["in.jsonl", "in.csv", "body.json"])
def test_a_file_in_utf_16_is_refused_with_the_remedy(
    name: str, job: Job, counting: Server, tmp_path: Path
) -> None:
    texts = {"in.jsonl": LINE, "in.csv": "a\n1\n", "body.json": '{"a": "{a}"}'}
    for file, text in texts.items():
        (tmp_path / file).write_bytes(text.encode("utf-16" if file == name else "utf-8"))
    source = "in.jsonl" if name == "in.jsonl" else "in.csv"
    result = job.run(source, *(() if source == "in.jsonl" else ("--body", "body.json")))
    assert (result.returncode, "save the file as UTF-8" in result.stderr) == (2, True)
    assert counting.seen == []


def test_a_compressed_file_is_refused_with_the_remedy(job: Job, counting: Server) -> None:
    (job.folder / "body.json").write_text('{"a": "{a}"}')
    for name, text in {"in.jsonl.gz": LINE.encode(), "in.csv": b"a\n1\n"}.items():
        (job.folder / name).write_bytes(gzip.compress(text))
        result = job.run(name, "--body", "body.json")
        assert (result.returncode, f"{name} is compressed" in result.stderr) == (2, True)
    assert counting.seen == []


@pytest.mark.parametrize(
    "stdin", [LINE.encode("utf-16"), gzip.compress(LINE.encode(), mtime=0)], ids=["utf-16", "gzip"]
)
def test_stdin_in_utf_16_or_compressed_fails_with_the_remedy(
    stdin: bytes, job: Job, counting: Server
) -> None:
    job.run("-", stdin=stdin)
    assert "save the file as UTF-8, not compressed" in job.failures()[1]["error"]["message"]
    assert counting.seen == []


def test_a_csv_with_the_line_breaks_of_old_macs_is_read(tmp_path: Path) -> None:
    path = tmp_path / "old.csv"
    path.write_bytes(b"a,b\r1,2\r3,4")
    rows = [item[1]() for item in csv_records(path) if item]
    assert [{name: part.value for name, part in (row or {}).items()} for row in rows] == [
        {"a": "1", "b": "2"},
        {"a": "3", "b": "4"},
    ]
