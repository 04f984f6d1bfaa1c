"""The official client, for openai 1.x and all later ones."""

import asyncio

import cells

# docs: openai
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="hq_...")
# docs end
from openai import AsyncOpenAI, BadRequestError, NotFoundError

TURNS = {"context": "turns"}


def asynchronous() -> AsyncOpenAI:
    return AsyncOpenAI(base_url=client.base_url, api_key=client.api_key)


def turns():
    first = client.responses.create(model="helixnet", input=cells.NAME)
    history = [{"role": "user", "content": cells.NAME}, *first.output]
    question = {"role": "user", "content": cells.WHO}
    second = client.responses.create(model="helixnet", input=[*history, question], extra_body=TURNS)
    cells.expect(second.output_text, cells.WHO_ANSWER)
    # The same by reference, and as dictionaries.
    second = client.responses.create(
        model="helixnet", input=cells.WHO, previous_response_id=first.id
    )
    cells.expect(second.output_text, cells.WHO_ANSWER)
    items = [history[0], *(item.model_dump() for item in first.output), question]
    third = client.responses.create(model="helixnet", input=items)
    cells.expect(third.output_text, "I do not know your name.")


def silence():
    text = ""
    with client.responses.create(
        model="helixnet", input=cells.SILENT, stream=True, timeout=cells.TIMEOUT
    ) as stream:
        for number, event in enumerate(stream):
            cells.expect(event.sequence_number, number)
            if event.type == "response.output_text.delta":
                text += event.delta
    cells.expect(text, cells.SILENT_ANSWER)
    cells.expect(event.response.output_text, cells.SILENT_ANSWER)


def stop():
    response = client.responses.create(
        model="helixnet", input=cells.STOPPED, extra_body={"stop": [cells.STOP]}
    )
    cells.expect(response.output_text, cells.STOPPED_ANSWER)
    return "extra_body"


def cancel():
    response = client.responses.create(model="helixnet", input=cells.ENDLESS, background=True)
    with client.responses.retrieve(response.id, stream=True) as stream:
        next(event for event in stream if event.type == "response.reasoning_text.delta")
    cells.expect(client.responses.cancel(response.id).status, "cancelled")
    cells.expect(client.responses.retrieve(response.id).status, "cancelled")


def errors():
    error = cells.expect_error(
        lambda: client.responses.create(
            model="helixnet", input="Why?", temperature=cells.BAD_TEMPERATURE
        ),
        cells.BAD_TEMPERATURE_MESSAGE,
    )
    assert isinstance(error, BadRequestError), error
    cells.expect(error.param, "temperature")
    error = cells.expect_error(
        lambda: client.responses.retrieve(cells.UNKNOWN_ID), cells.UNKNOWN_ID_MESSAGE
    )
    assert isinstance(error, NotFoundError), error
    cells.expect(error.code, "not_found")


def turns_async():
    async def ask():
        async with asynchronous() as client:
            first = await client.responses.create(model="helixnet", input=cells.NAME)
            items = [
                {"role": "user", "content": cells.NAME},
                *first.output,
                {"role": "user", "content": cells.WHO},
            ]
            second = await client.responses.create(model="helixnet", input=items, extra_body=TURNS)
            return second.output_text

    cells.expect(asyncio.run(ask()), cells.WHO_ANSWER)


def silence_async():
    async def read():
        text = ""
        async with asynchronous() as client:
            stream = await client.responses.create(
                model="helixnet", input=cells.SILENT, stream=True, timeout=cells.TIMEOUT
            )
            async for event in stream:
                if event.type == "response.output_text.delta":
                    text += event.delta
        return text

    cells.expect(asyncio.run(read()), cells.SILENT_ANSWER)


def stop_async():
    async def ask():
        async with asynchronous() as client:
            response = await client.responses.create(
                model="helixnet", input=cells.STOPPED, extra_body={"stop": cells.STOP}
            )
            return response.output_text

    cells.expect(asyncio.run(ask()), cells.STOPPED_ANSWER)
    return "extra_body"


def cancel_async():
    async def ask_and_cancel():
        async with asynchronous() as client:
            response = await client.responses.create(
                model="helixnet", input=cells.ENDLESS, background=True
            )
            return (await client.responses.cancel(response.id)).status

    cells.expect(asyncio.run(ask_and_cancel()), "cancelled")


def errors_async():
    async def ask(**parameters):
        async with asynchronous() as client:
            await client.responses.create(model="helixnet", input="Why?", **parameters)

    cells.expect_error(
        lambda: asyncio.run(ask(temperature=cells.BAD_TEMPERATURE)), cells.BAD_TEMPERATURE_MESSAGE
    )
    cells.expect_error(
        lambda: asyncio.run(ask(previous_response_id=cells.UNKNOWN_ID)),
        cells.UNKNOWN_ID,
    )


def turns_chat():
    messages = [{"role": "user", "content": cells.NAME}]
    first = client.chat.completions.create(model="helixnet", messages=messages)
    cells.expect(first.choices[0].message.content, f"You said: {cells.NAME}")
    messages += [first.choices[0].message, {"role": "user", "content": cells.WHO}]
    second = client.chat.completions.create(model="helixnet", messages=messages)
    cells.expect(second.choices[0].message.content, cells.WHO_ANSWER)


def silence_chat():
    text = reasoning = ""
    for chunk in client.chat.completions.create(
        model="helixnet",
        messages=[{"role": "user", "content": cells.SILENT}],
        stream=True,
        stream_options={"include_usage": True},
        timeout=cells.TIMEOUT,
    ):
        for choice in chunk.choices:
            text += choice.delta.content or ""
            reasoning += getattr(choice.delta, "reasoning_content", None) or ""
    cells.expect(text, cells.SILENT_ANSWER)
    cells.expect(reasoning, f"ACTOR: {cells.SILENT_ANSWER}\n\nCRITIQUE: Say less.")
    assert chunk.usage.total_tokens > 0


def stop_chat():
    completion = client.chat.completions.create(
        model="helixnet", messages=[{"role": "user", "content": cells.STOPPED}], stop=cells.STOP
    )
    [choice] = completion.choices
    cells.expect((choice.message.content, choice.finish_reason), (cells.STOPPED_ANSWER, "stop"))


def cancel_chat():
    with client.chat.completions.create(
        model="helixnet", messages=[{"role": "user", "content": cells.ENDLESS}], stream=True
    ) as stream:
        completion = next(iter(stream)).id
    cells.cancel_by_id(completion)


def errors_chat():
    def ask(model="helixnet", **parameters):
        client.chat.completions.create(
            model=model, messages=[{"role": "user", "content": "Why?"}], **parameters
        )

    cells.expect_error(
        lambda: ask(temperature=cells.BAD_TEMPERATURE), cells.BAD_TEMPERATURE_MESSAGE
    )
    error = cells.expect_error(lambda: ask(cells.UNKNOWN_MODEL), cells.UNKNOWN_MODEL_MESSAGE)
    assert isinstance(error, NotFoundError), error


if __name__ == "__main__":
    cells.run(
        Responses=[turns, silence, stop, cancel, errors],
        Responses_async=[turns_async, silence_async, stop_async, cancel_async, errors_async],
        chat_completions=[turns_chat, silence_chat, stop_chat, cancel_chat, errors_chat],
    )
