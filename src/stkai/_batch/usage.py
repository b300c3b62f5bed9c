"""Tokens and dollars, from the usage reported in answers."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from .errors import UsageError

_MILLION: Final = 1_000_000
_INPUT: Final = ("prompt_tokens", "input_tokens")
_OUTPUT: Final = ("completion_tokens", "output_tokens")


@dataclass(frozen=True, slots=True)
class Price:
    """Dollars for a million tokens, of questions and of answers."""

    input: float
    output: float

    @classmethod
    def parse(cls, text: str) -> "Price":
        """Parse a price such as `input=0.15,output=0.6`; an omitted part is free.

        Raises:
            UsageError: the text has another form.
        """
        prices = {"input": 0.0, "output": 0.0}
        for part in text.split(","):
            name, _, amount = part.strip().partition("=")
            try:
                value = float(amount)
            except ValueError:
                value = -1.0
            if name not in prices or not 0 <= value < _MILLION:
                msg = (
                    f"--price must be dollars per million tokens, such as input=0.15,output=0.6, not {text!r}"
                )
                raise UsageError(msg)
            prices[name] = value
        return cls(**prices)

    def dollars(self, asked: int, answered: int) -> float:
        """The cost of these tokens."""
        return (asked * self.input + answered * self.output) / _MILLION

    def __str__(self) -> str:
        return f"input={self.input:g},output={self.output:g}"


class Usage:
    """The tokens of the answers so far.

    Attributes:
        asked: in the questions.
        answered: in the answers.
    """

    def __init__(self, asked: int = 0, answered: int = 0) -> None:
        self.asked, self.answered = asked, answered

    def add(self, body: Any) -> None:
        """Count the usage that an answer reports, if any."""
        if not isinstance(body, dict):
            return
        usage, tokens = body.get("usage"), body.get("tokens")
        if isinstance(usage, dict):
            self.asked += _first(usage, _INPUT)
            self.answered += _first(usage, _OUTPUT)
        elif isinstance(tokens, dict):  # StackSpot's agents.
            self.asked += _first(tokens, ("user",)) + _first(tokens, ("enrichment",))
            self.answered += _first(tokens, ("output",))

    def text(self, price: Price | None) -> str:
        """For people, such as `12.4M tokens $1.86`; empty if nothing was reported."""
        total = self.asked + self.answered
        if not total:
            return ""
        cost = "" if price is None else f" {show_dollars(price.dollars(self.asked, self.answered))}"
        return f"{show_count(total)} tokens{cost}"


def _first(usage: Mapping[str, Any], names: tuple[str, ...]) -> int:
    for name in names:
        count = usage.get(name)
        if isinstance(count, int) and not isinstance(count, bool) and count > 0:
            return count
    return 0


def count(number: int, what: str) -> str:
    """A number of things: 1 line, 3,000 lines."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def show_count(count: float) -> str:
    """A count, short: 812, 41.2k, 12.4M."""
    for limit, unit in ((_MILLION, "M"), (10_000, "k")):
        if count >= limit:
            return f"{count / (1000 if unit == 'k' else limit):.1f}{unit}"
    return f"{count:,.0f}"


def show_dollars(amount: float) -> str:
    """Dollars, with more digits for small amounts."""
    return f"${amount:,.2f}" if amount >= 1 or not amount else f"${amount:.4f}"
