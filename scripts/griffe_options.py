"""For the API pages: shows each keyword of `**options: Unpack[SomeTypedDict]` as a parameter of its own.

`help()` shows them likewise, see `stkai._builder`. griffe's own extension for this knows no descriptions.
"""

from typing import Any

import griffe

from stkai import _builder


class Options(griffe.Extension):
    """Unpacks the keywords once the whole package is known."""

    def on_package(self, *, pkg: griffe.Module, **kwargs: Any) -> None:
        for function in _functions(pkg):
            last = function.parameters[-1] if len(function.parameters) else None
            if last is None or last.kind is not griffe.ParameterKind.var_keyword:
                continue
            if not str(last.annotation).startswith("Unpack["):
                continue
            options = function.resolve(last.annotation.slice.name)
            function.parameters = griffe.Parameters(
                *(each for each in function.parameters if each is not last),
                *(
                    griffe.Parameter(
                        name,
                        annotation=attribute.annotation,
                        kind=griffe.ParameterKind.keyword_only,
                        default=_default(name, options),
                    )
                    for name, attribute in pkg.modules_collection[options].attributes.items()
                ),
            )
            if function.docstring and options.endswith(".StackOptions"):
                has_transport = any(each.name == "transport" for each in function.parameters)
                arguments = _builder.describe_arguments(with_transport=has_transport)
                function.docstring.value += f"\n\n{arguments}"


def _default(name: str, options: str) -> str:
    """As code: `...` is whatever the settings or the stack say."""
    return repr(_builder.DEFAULTS.get(name)) if options.endswith(".StackOptions") else "..."


def _functions(owner: griffe.Object) -> list[griffe.Function]:
    found: list[griffe.Function] = []
    for member in owner.members.values():
        if member.is_alias:
            continue
        if member.is_function:
            found.append(member)
        elif member.is_module or member.is_class:
            found += _functions(member)
    return found
