"""What a request refers to: items of earlier responses, and the turns before its question.

Turns are for requests that ask for them: ``context: turns``, or a previous response.
"""

from __future__ import annotations

import re

from jobs import pipeline
from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.models import AttemptStatus, Job, Status
from jobs.pipeline import Turn
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.protocol.items import ItemReference, Message
from jobs.protocol.request import CreateResponse, refers_to_input
from jobs.protocol.validation import check_question
from jobs.use_cases import queries

#: The maximum number of responses that references of one request may name.
MAX_REFERENCED = 100
#: The ids of answers; see `jobs.protocol.response.item_id`.
_MESSAGE_ID = re.compile(r"msg_regenerator_(\d)_([0-9a-z]{1,32})(?:_(\d{1,9}))?(?:_\d{1,9})?")
#: The ids of what was asked; see `jobs.protocol.input_items.input_item_list`.
_INPUT_ID = re.compile(r"msg_input_(\d{1,6})_([0-9a-z]{1,32})")
#: What the last message of a role is where the question alone is asked.
_PARTS = {"user": "question", "system": "system prompt", "developer": "system prompt"}


def resolve(
    request: CreateResponse, database: Database, owner: str
) -> tuple[CreateResponse, list[Turn] | None]:
    """Return a request with the messages that its references name, and the turns before its question.

    References to answers stay: they are turns, and nothing else.

    Args:
        request: a valid one.
        database: has the earlier responses.
        owner: of the earlier responses.

    Returns:
        no turns but None if the context is the question alone.

    Raises:
        InvalidRequestError: there is no such earlier response or item, or it has no answer; or the question that a
            reference names is empty.
    """
    responses = _Responses(database, owner)
    if request.refers_to_input:
        request = _with_messages(request, responses)
        check_question(request, "input")
    return request, _earlier_turns(request, responses) if request.asks_turns else None


def _with_messages(request: CreateResponse, responses: _Responses) -> CreateResponse:
    """Return a request with the input items that it refers to in the place of the references.

    Where the question alone is asked, they are looked up from the last one on until it and the system prompt are known.
    """
    items = [*request.input]
    missing = {"question"} if request.instructions is not None else {"question", "system prompt"}
    for number, item in reversed([*enumerate(items)]):
        if not missing and not request.asks_turns:
            break
        if isinstance(item, ItemReference) and refers_to_input(item):
            param = f"input.{number}.id"
            found = responses.asked(item.id, param)
            if found is not None:
                items[number] = item = found
            elif request.asks_turns or "question" in missing:
                raise _not_found(item.id, param)
        if isinstance(item, Message) and item.role in _PARTS:
            missing.discard(_PARTS[item.role])
    return request.model_copy(update={"input": items})


def _earlier_turns(request: CreateResponse, responses: _Responses) -> list[Turn]:
    turns = []
    if request.previous_response_id is not None:
        turns += responses.conversation(request.previous_response_id)
    items = [] if isinstance(request.input, str) else request.input
    last = max((n for n, item in enumerate(items) if _is_user(item)), default=0)
    for number, item in enumerate(items[:last]):
        if isinstance(item, ItemReference):
            turns += responses.referenced(item.id, f"input.{number}.id")
        elif isinstance(item, Message) and item.role in ("user", "assistant"):
            turns.append(Turn("user" if item.role == "user" else "assistant", item.text))
    return turns


def _is_user(item: object) -> bool:
    return isinstance(item, Message) and item.role == "user"


def _not_found(item_id: str, param: str) -> InvalidRequestError:
    return InvalidRequestError(
        f"There is no item with the id {item_id!r}. Send the item itself.",
        code="item_not_found",
        param=param,
    )


class _Responses:
    """An owner's earlier responses, each read once."""

    def __init__(self, database: Database, owner: str) -> None:
        self._database = database
        self._owner = owner
        self._jobs: dict[str, Job] = {}
        #: Those of them whose input items are loaded.
        self._with_input: set[str] = set()

    def conversation(self, response_id: str) -> list[Turn]:
        """Return a response's turns, its question and its answer."""
        param = "previous_response_id"
        try:
            job = self._get(response_id)
        except JobNotFoundError:
            raise InvalidRequestError(
                f"There is no response with the id {response_id!r}, which `{param}` names.",
                code="previous_response_not_found",
                param=param,
            ) from None
        if job.status not in (Status.COMPLETED, Status.INCOMPLETE):
            raise InvalidRequestError(
                f"The response that `{param}` names has no answer: its status is `{job.status}`.",
                code="previous_response_not_completed",
                param=param,
            )
        if job.has_lost_texts:
            raise InvalidRequestError(
                f"The response that `{param}` names cannot be continued: texts of it were erased.",
                code="previous_response_erased",
                param=param,
            )
        turns = [
            Turn("user" if t["role"] == "user" else "assistant", t["text"]) for t in job.turns or ()
        ]
        return [
            *turns,
            Turn("user", job.question),
            Turn("assistant", job.finished[-1].output or ""),
        ]

    def referenced(self, item_id: str, param: str) -> list[Turn]:
        """Return the answer that an item reference names; nothing for what is no turn, such as a draft."""
        if item_id.startswith("rs_"):
            return []
        turns = None
        if match := _MESSAGE_ID.fullmatch(item_id):
            turns = self._answer(f"resp_{match[2]}", int(match[1]), int(match[3] or 1), param)
        if turns is None:
            raise _not_found(item_id, param)
        return turns

    def _answer(self, job_id: str, round_: int, run: int, param: str) -> list[Turn] | None:
        job = self._find(job_id, param)
        if job is None:
            return None
        stage = pipeline.stages(job.rounds)[-1]
        if stage.round != round_:
            return None
        for attempt in job.of_run(run):
            if attempt.stage_index == stage.index and attempt.status is AttemptStatus.FINISHED:
                return [Turn("assistant", attempt.output or "")]
        return None

    def asked(self, item_id: str, param: str) -> Message | None:
        """Return the message of an earlier response's input that an item reference names; None if there is none."""
        match = _INPUT_ID.fullmatch(item_id)
        job = match and self._find(f"resp_{match[2]}", param, with_input=True)
        if not match or not job:
            return None
        items = job.input_items or [{"role": "user", "content": job.question}]
        number = int(match[1])
        if number >= len(items) or "role" not in items[number]:
            return None
        return Message.model_validate(items[number])

    def _find(self, job_id: str, param: str, *, with_input: bool = False) -> Job | None:
        """Return a job that a reference may name; None if there is none, or if texts of it were erased."""
        if job_id not in self._jobs and len(self._jobs) >= MAX_REFERENCED:
            raise invalid_value(
                param,
                f"The input refers to items of more than {MAX_REFERENCED} responses. Send the items.",
            )
        try:
            job = self._get(job_id, with_input=with_input)
        except JobNotFoundError:
            return None
        return None if job.has_lost_texts else job

    def _get(self, job_id: str, *, with_input: bool = False) -> Job:
        if job_id not in self._jobs or (with_input and job_id not in self._with_input):
            self._jobs[job_id] = queries.get_job(
                self._database, self._owner, job_id, with_history=with_input
            )
            if with_input:
                self._with_input.add(job_id)
        return self._jobs[job_id]
