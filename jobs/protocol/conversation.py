"""The turns before a question, for requests that ask for them: ``context: turns``, or a previous response."""

from __future__ import annotations

import re

from jobs import pipeline
from jobs.database import Database
from jobs.errors import JobNotFoundError
from jobs.models import AttemptStatus, Job, Status
from jobs.pipeline import Turn
from jobs.protocol.errors import InvalidRequestError, invalid_value
from jobs.protocol.items import ItemReference, Message
from jobs.protocol.request import CreateResponse
from jobs.use_cases import queries

#: The maximum number of responses that references of one request may name.
MAX_REFERENCED = 100
#: The ids of answers; see `jobs.protocol.response.item_id`.
_MESSAGE_ID = re.compile(r"msg_regenerator_(\d)_([0-9a-z]{1,32})(?:_(\d{1,9}))?(?:_\d{1,9})?")
#: The ids of what was asked; see `jobs.protocol.input_items.input_item_list`.
_INPUT_ID = re.compile(r"msg_input_(\d{1,6})_([0-9a-z]{1,32})")


def earlier_turns(request: CreateResponse, database: Database, owner: str) -> list[Turn] | None:
    """Return the turns before the question: those of the previous response, then those of the input.

    Args:
        request: a valid one.
        database: has the earlier responses.
        owner: of the earlier responses.

    Returns:
        None if the context is the question alone.

    Raises:
        InvalidRequestError: there is no such earlier response, or it has no answer.
    """
    if not request.asks_turns:
        return None
    responses = _Responses(database, owner)
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
        """Return the message that an item reference names; nothing for what is no turn, such as a draft."""
        if item_id.startswith("rs_"):
            return []
        turns = None
        if match := _MESSAGE_ID.fullmatch(item_id):
            turns = self._answer(f"resp_{match[2]}", int(match[1]), int(match[3] or 1), param)
        elif match := _INPUT_ID.fullmatch(item_id):
            turns = self._asked(f"resp_{match[2]}", int(match[1]), param)
        if turns is None:
            raise InvalidRequestError(
                f"There is no item with the id {item_id!r}. Send the item itself.",
                code="item_not_found",
                param=param,
            )
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

    def _asked(self, job_id: str, number: int, param: str) -> list[Turn] | None:
        job = self._find(job_id, param, with_input=True)
        if job is None:
            return None
        items = job.input_items or [{"role": "user", "content": job.question}]
        if number >= len(items):
            return None
        if items[number].get("role") not in ("user", "assistant"):
            return []
        message = Message.model_validate(items[number])
        return [Turn("user" if message.role == "user" else "assistant", message.text)]

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
