"""Settings and records behave as the dataclasses that they replace."""

import copy
import dataclasses
import inspect
import pickle
import subprocess
import sys
from typing import Any

import pytest

import stkai
from stkai.transports._options import CallRecord

POLICY = stkai.RetryPolicy(5, deadline=3.0)


def test_import_stkai_generates_no_dataclass() -> None:
    script = "import sys, httpx; before = set(sys.modules); import stkai; print(set(sys.modules) - before)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    loaded = done.stdout
    assert "'stkai._values'" in loaded
    assert not {"'signal'", "'dataclasses'"} & set(loaded.strip("{}\n").split(", "))


def test_a_value_is_equal_to_another_with_the_same_fields() -> None:
    assert stkai.RetryPolicy(max_retries=5, deadline=3.0) == POLICY
    assert hash(POLICY) == hash(stkai.RetryPolicy(max_retries=5, deadline=3.0))
    assert stkai.RetryPolicy(5) != POLICY
    assert stkai.RequestOptions(deadline=3.0) != POLICY
    assert CallRecord(2) == CallRecord(attempts=2)


@pytest.mark.parametrize(
    "copied",
    [copy.copy, copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))],  # noqa: S301
)
@pytest.mark.parametrize("value", [POLICY, stkai.RequestOptions(deadline=3.0, retry=None), CallRecord(3)])
def test_a_copy_is_equal(value: Any, copied: Any) -> None:
    assert copied(value) == value


def test_a_setting_cannot_be_changed_and_a_record_can() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError, match="max_retries"):
        setattr(POLICY, "max_retries", 3)  # noqa: B010 - a type checker refuses the plain form
    with pytest.raises(dataclasses.FrozenInstanceError, match="max_retries"):
        del POLICY.max_retries
    record = CallRecord()
    record.attempts += 1
    assert (
        repr(record) == "CallRecord(attempts=2, queued=0.0, backed_off=0.0, authenticating=0.0, on_wire=0.0)"
    )
    with pytest.raises(TypeError, match="unhashable"):
        hash(record)


def test_the_functions_of_dataclasses_take_values() -> None:
    assert dataclasses.is_dataclass(POLICY)
    assert dataclasses.replace(POLICY, max_retries=1) == stkai.RetryPolicy(1, deadline=3.0)
    assert dataclasses.asdict(CallRecord(2))["attempts"] == 2
    assert next(iter(inspect.signature(stkai.RetryPolicy).parameters)) == "max_retries"
    with pytest.raises(stkai.ConfigurationError, match="max_retries"):
        dataclasses.replace(POLICY, max_retries=-1)


def test_a_dataclass_can_be_derived_from_a_setting() -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine(stkai.RetryPolicy):
        name: str = "mine"

    mine = Mine(2, name="other")
    assert (mine.max_retries, mine.max_delay, mine.name) == (2, 60.0, "other")


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((1, 2), {}, "takes at most 1 positional"),
        ((), {"retries": 3}, "unexpected keyword argument 'retries'"),
        ((1,), {"max_retries": 3}, "multiple values for argument 'max_retries'"),
    ],
)
def test_wrong_arguments_are_type_errors(arguments: Any, options: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        stkai.RetryPolicy(*arguments, **options)
