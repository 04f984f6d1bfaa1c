"""`--json` with fields to choose: ``--json id,status``. Alone, it stands for all."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

F = TypeVar("F", bound=Callable[..., Any])

ALL = "*"
_CONTROLS = re.compile("[\x7f-\x9f]")


class Fields:
    """The fields that were chosen, in their order."""

    def __init__(self, names: Sequence[str] | None) -> None:
        """
        Args:
            names: of the fields; None for all.
        """
        self.names = names

    def of(self, data: dict[str, Any], **further: Any) -> dict[str, Any]:
        """Return the chosen fields of an object. One that the object lacks is None.

        Args:
            data: the object, which is returned whole if no fields were chosen.
            further: fields that it has if they are chosen.
        """
        if self.names is None:
            return data
        return {name: further[name] if name in further else data.get(name) for name in self.names}

    def print(
        self, data: dict[str, Any] | list[dict[str, Any]], *, lines: bool = False, **further: Any
    ) -> None:
        """Print the chosen fields as JSON.

        Args:
            data: an object, or a list of objects.
            lines: whether to print it in one line.
            further: as in `of`.
        """
        chosen = (
            self.of(data, **further)
            if isinstance(data, dict)
            else [self.of(each, **further) for each in data]
        )
        click.echo(_text(chosen, indent=None if lines else 2))

    def print_each(self, objects: Iterable[dict[str, Any]]) -> None:
        """Print the chosen fields of objects as a JSON array: each object in a line of its own, as soon as it is there."""
        before = "["
        for each in objects:
            click.echo(f"{before}\n{_text(self.of(each))}", nl=False)
            before = ","
        click.echo("[]" if before == "[" else "\n]")


def _text(data: Any, indent: int | None = None) -> str:
    ascii_only = not sys.stdout.encoding.lower().startswith("utf")
    text = json.dumps(data, ensure_ascii=ascii_only, indent=indent)
    # JSON escapes the other control characters itself. Terminals take these for the beginning of a command.
    return _CONTROLS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


class _FieldsType(click.ParamType[Fields]):
    name = "fields"

    def __init__(self, known: str | Sequence[str], further: Sequence[str]) -> None:
        self._known, self._further = known, further

    @cached_property
    def names(self) -> list[str]:
        """The names of all fields."""
        if not isinstance(self._known, str):
            return [*self._known, *self._further]
        # Imported here since it takes a while, and most commands print no JSON.
        from jobs.protocol import schemas

        shape: type[schemas.Reply] = getattr(schemas, self._known)
        return [*shape.model_fields, *self._further]

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if isinstance(value, Fields):
            return value
        if value == ALL:
            return Fields(None)
        names = value.split(",")
        if unknown := [name for name in names if name not in self.names]:
            self.fail(
                f"{', '.join(map(repr, unknown))}: there is no such field. The fields are {', '.join(self.names)}.",
                param,
                ctx,
            )
        return Fields(names)

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002 (click's)
        param: click.Parameter,  # noqa: ARG002 (click's)
        incomplete: str,
    ) -> list[CompletionItem]:
        """Return the fields that the last name may become."""
        before, comma, last = incomplete.rpartition(",")
        return [
            CompletionItem(before + comma + name) for name in self.names if name.startswith(last)
        ]


class Command(click.Command):
    """A command whose ``--json`` may come with fields or alone."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Give a ``--json`` that stands alone all fields."""
        for option in self.params:
            if isinstance(option.type, _FieldsType) and "--json" in args:
                place = args.index("--json")
                following = args[place + 1 : place + 2]
                takes_arguments = any(isinstance(p, click.Argument) for p in self.params)
                if not following or not _are_fields(
                    following[0], option.type.names, certainly=not takes_arguments
                ):
                    args = [*args[:place], f"--json={ALL}", *args[place + 1 :]]
                    return self._parse_alone(ctx, args, option, following)
        return super().parse_args(ctx, args)

    def _parse_alone(
        self, ctx: click.Context, args: list[str], option: click.Parameter, following: list[str]
    ) -> list[str]:
        """Parse arguments of which one, after a ``--json`` that seems to stand alone, may be a misspelt field."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            # Its subclasses are about options; this one is about an argument too many.
            if type(error) is click.UsageError and following and not following[0].startswith("-"):
                option.type.convert(following[0], option, ctx)
            raise


def _are_fields(text: str, names: Sequence[str], *, certainly: bool) -> bool:
    """Return whether what follows ``--json`` names fields, and is no option and no argument of the command."""
    if text.startswith("-"):
        return False
    return certainly or any(name in names for name in text.split(","))


def json_fields(known: str | Sequence[str], *further: str) -> Callable[[F], F]:
    """Add the option ``fields``: the `Fields` of ``--json``, or None. The command must be a `Command`.

    Args:
        known: the names of the fields, or the name of the shape in `jobs.protocol.schemas` that has them.
        further: names of more fields.
    """
    return click.option(
        "--json",
        "fields",
        type=_FieldsType(known, further),
        metavar="[FIELDS]",
        help="Print JSON, with all fields or only these, separated by commas. An unknown field lists them all.",
    )
