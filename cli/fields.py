"""`--json` with fields to choose: ``--json id,status``. Alone, it stands for all."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click

from jobs.protocol import schemas

F = TypeVar("F", bound=Callable[..., Any])

ALL = "*"


class Fields:
    """The fields that were chosen, in their order."""

    def __init__(self, names: Sequence[str] | None) -> None:
        """
        Args:
            names: of the fields; None for all.
        """
        self._names = names

    def of(self, data: dict[str, Any], **further: Any) -> dict[str, Any]:
        """Return the chosen fields of an object.

        Args:
            data: the object, which is returned whole if no fields were chosen.
            further: fields that it has if they are chosen.
        """
        if self._names is None:
            return data
        return {name: further[name] if name in further else data[name] for name in self._names}


class _FieldsType(click.ParamType[Fields]):
    name = "fields"

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names

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
        return super().parse_args(ctx, args)


def _are_fields(text: str, names: Sequence[str], *, certainly: bool) -> bool:
    """Return whether what follows ``--json`` names fields, and is no option and no argument of the command."""
    if text.startswith("-"):
        return False
    return certainly or any(name in names for name in text.split(","))


def json_fields(known: type[schemas.Reply] | Sequence[str], *further: str) -> Callable[[F], F]:
    """Add the option ``fields``: the `Fields` of ``--json``, or None.

    Args:
        known: the names of the fields, or the shape that has them.
        further: names of more fields.
    """
    names = [*(known.model_fields if isinstance(known, type) else known), *further]
    return click.option(
        "--json",
        "fields",
        type=_FieldsType(names),
        metavar="[FIELDS]",
        help="Print JSON, or only these fields of it, separated by commas. An unknown one lists them all.",
    )
