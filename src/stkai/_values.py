"""Settings and records: what dataclasses do, without the milliseconds that `import stkai` would spend to generate them.

`dataclasses.replace`, `fields` and `asdict` take them as well: a dataclass of the same form is made when one asks.
"""

from typing import Any, ClassVar, NoReturn, Self, dataclass_transform


class _FromTwin:
    """An attribute that a class has from the dataclass of the same form."""

    def __init__(self, name: str) -> None:
        self._name = name

    def __get__(self, instance: object, cls: Any) -> Any:
        if not cls._defaults:  # A base of such classes, which has no fields and is not one of them.
            raise AttributeError(self._name)
        return getattr(_twin_of(cls), self._name)


def _twin_of(cls: Any) -> Any:
    if "_twin" not in vars(cls):
        from dataclasses import field, make_dataclass
        from inspect import signature

        types = {
            name: kind for base in reversed(cls.__mro__[:-1]) for name, kind in base.__annotations__.items()
        }
        fields = [
            (name, types[name], field(default=default, kw_only=name not in cls.__match_args__))
            for name, default in cls._defaults.items()
        ]
        twin: Any = make_dataclass(cls.__name__, fields, frozen=issubclass(cls, Frozen))
        twin.__signature__ = signature(twin)
        cls._twin = twin
    return cls._twin


class Value:
    """A class whose annotated names are its fields; equal if all fields are.

    Attributes:
        _defaults: what each field is if it is not given.
    """

    __slots__ = ()
    __dataclass_fields__: ClassVar[Any] = _FromTwin("__dataclass_fields__")
    __dataclass_params__: ClassVar[Any] = _FromTwin("__dataclass_params__")
    __signature__: ClassVar[Any] = _FromTwin("__signature__")
    __match_args__: ClassVar[Any] = ()
    _defaults: ClassVar[dict[str, Any]] = {}

    def __replace__(self, **changes: Any) -> Self:
        """A copy with other values in some fields; checked as well."""
        return type(self)(**{**dict(zip(self._defaults, self._values(), strict=True)), **changes})

    def __eq__(self, other: object) -> bool:
        return self._values() == other._values() if type(other) is type(self) else NotImplemented

    __hash__: Any = None

    def _values(self) -> tuple[Any, ...]:
        return tuple(getattr(self, name) for name in self._defaults)

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in self._defaults)
        return f"{type(self).__qualname__}({shown})"


@dataclass_transform(frozen_default=True)
class Frozen(Value):
    """A `Value` that never changes, whose defaults are in the body of the class.

    Fields after `_: "KW_ONLY"`, or all with `kw_only=True`, can only be given by keyword.
    """

    def __init_subclass__(cls, *, kw_only: bool = False) -> None:
        own, names = vars(cls), list(cls.__annotations__)
        cls._defaults = cls._defaults | {name: own[name] for name in names if name in own}
        if "__match_args__" not in own:
            places = 0 if kw_only else names.index("_") if "_" in names else len(names)
            setattr(cls, "__match_args__", tuple(names[:places]))  # noqa: B010 - final, to type checkers

    def __init__(self, *args: Any, **given: Any) -> None:
        names, kind = self.__match_args__, type(self).__name__
        if len(args) > len(names):
            raise TypeError(
                f"{kind}.__init__() takes at most {len(names)} positional arguments, and {len(args)} were given"
            )
        by_place = dict(zip(names, args, strict=False))
        for name in given:
            if name not in self._defaults:
                raise TypeError(f"{kind}.__init__() got an unexpected keyword argument {name!r}")
            if name in by_place:
                raise TypeError(f"{kind}.__init__() got multiple values for argument {name!r}")
        # One by one: Python reads them faster than those of a dict that was filled at once.
        for name, value in (self._defaults | by_place | given).items():
            object.__setattr__(self, name, value)
        self.__post_init__()

    def __post_init__(self) -> None:
        """Check the fields."""

    def __hash__(self) -> int:
        return hash(self._values())

    def __setattr__(self, name: str, value: object) -> NoReturn:
        raise _frozen(f"cannot assign to field {name!r}")

    def __delattr__(self, name: str) -> NoReturn:
        raise _frozen(f"cannot delete field {name!r}")


def _frozen(message: str) -> Exception:
    from dataclasses import FrozenInstanceError

    return FrozenInstanceError(message)
