"""Labels with few enough values."""

import pytest

from stkai.events import AttemptFinished, CallInfo
from stkai.telemetry._metrics import OTHER, Recorder, cause_of, error_type


@pytest.mark.parametrize(
    ("cause", "label"),
    [
        ("503 Service Unavailable", "503"),
        ("429", "429"),
        ("ConnectError: [Errno 111] Connection refused", "ConnectError"),
        ("ReadTimeout", "ReadTimeout"),
        ("the moon is full", OTHER),
        ("", OTHER),
    ],
)
def test_a_cause_is_its_status_code_or_the_name_of_its_error(cause: str, label: str) -> None:
    assert cause_of(cause) == label


def test_an_error_is_a_class_or_a_status_from_400_up() -> None:
    assert error_type(200, None) is None
    assert error_type(404, None) == "404"
    assert error_type(None, "ConnectError") == "ConnectError"
    assert error_type(None, "BaseExceptionGroup") == "Cancelled"  # While it connects on trio.
    assert error_type(None, None) is None


def test_values_beyond_the_two_hundredth_share_one_label_and_ports_stay_numbers() -> None:
    ports = list[object]()
    record = Recorder(lambda _: lambda _, labels: ports.append(labels["server.port"]))
    for port in (*range(1, 1001), 7):
        call = CallInfo(id=port, method="GET", host="127.0.0.1", port=port)
        record(AttemptFinished(call=call, status=200, seconds=0.1))
    assert set(ports) == {*range(1, 201), OTHER}
    assert ports[-1] == 7
