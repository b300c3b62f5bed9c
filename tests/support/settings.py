"""What the tests of the settings share."""

from typing import Any

import pytest

from stkai._config import GlobalSettings
from stkai._config.sources import Explained
from stkai._errors import ConfigurationError

SECRET = "s3cr3t-of-the-client"


def row(stkai: GlobalSettings, variable: str) -> Explained:
    """The one row of a variable."""
    (found,) = (each for each in stkai.provenance() if each.variable == variable)
    return found


def refusal(stkai: GlobalSettings) -> str:
    """The error of settings that cannot be used."""
    with pytest.raises(ConfigurationError) as caught:
        _ = stkai.config
    return str(caught.value)


def made(model: type[Any], **values: object) -> Any:
    """A section from values that a type checker would reject."""
    return model(**values)
