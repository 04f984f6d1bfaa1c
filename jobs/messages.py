"""Which messages in Redis are ours: the stages of jobs, as `jobs.queue` and Celery's chains send them.

Celery trusts what it finds in its queues. A message that it cannot read may end the worker with all stages that it
runs, keep a slot for good, or wait in its memory. So whatever else is there is discarded before Celery sees it.
"""

from __future__ import annotations

import base64
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from jobs.pipeline import MAX_ROUNDS, Role, stages

#: The maximum number of bytes of a message. One of a job with the most rounds has about 3,500.
MAX_SIZE = 1 << 16

#: A stage of a job, as the arguments of a task: the job's id and the stage's index.
_Arguments = tuple[
    Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")],
    Annotated[int, Field(ge=0, lt=len(stages(MAX_ROUNDS)))],
]
_TaskName = Annotated[str, Field(pattern=rf"^helixq\.({'|'.join(Role)})$")]
_Nothing = Annotated[dict[str, Any] | list[Any], Field(max_length=0)] | None
_Scalar = str | int | float | bool | None


class _Strict(BaseModel):
    """Values have exactly these types."""

    model_config = ConfigDict(strict=True)


class _Fields(_Strict):
    """Further fields, such as those that a later version of Celery adds, are single values."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, _Scalar] = Field(init=False)


class _Properties(_Fields):
    delivery_tag: str
    body_encoding: Literal["base64"]
    delivery_info: dict[str, _Scalar]


class _Headers(_Fields):
    task: _TaskName
    id: str
    root_id: str | None = None
    parent_id: str | None = None
    retries: int = 0
    timelimit: tuple[float | None, float | None] = (None, None)
    # What makes Celery decompress a message, wait with it, or do something after it.
    compression: None = None
    eta: None = None
    expires: None = None
    group: None = None
    stamped_headers: _Nothing = None
    stamps: _Nothing = None


class _Message(_Strict):
    body: str
    content_type: Literal["application/json"] = Field(alias="content-type")
    content_encoding: Literal["utf-8"] = Field(alias="content-encoding")
    headers: _Headers
    properties: _Properties


class _Link(_Strict):  # type: ignore[no-redef]  # pydantic.mypy has a `kwargs` of its own
    """A later stage of the chain."""

    task: _TaskName
    args: _Arguments
    kwargs: _Nothing
    options: dict[str, _Scalar]
    subtask_type: None
    immutable: Literal[True]


class _Embedded(_Strict):
    chain: list[_Link] | None = None
    callbacks: _Nothing = None
    errbacks: _Nothing = None
    chord: None = None


_BODY = TypeAdapter(
    tuple[_Arguments, _Nothing, _Embedded],
    config=ConfigDict(strict=True),
)


def task_name(role: Role) -> str:
    """Return the name of the task that runs a role's stages."""
    return f"helixq.{role}"


def fault_of(message: bytes) -> str | None:
    """Return why a message is none of ours; None if it is one."""
    if len(message) > MAX_SIZE:
        return f"it has {len(message)} bytes"
    try:
        body = base64.b64decode(_Message.model_validate_json(message).body, validate=True)
        _BODY.validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False, include_context=False)[0]
        place = ".".join(map(str, first["loc"]))
        return f"{place}: {first['msg']}" if place else first["msg"]
    except ValueError as error:
        return str(error)
    return None
