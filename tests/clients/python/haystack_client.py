"""Haystack."""

import cells

# docs: haystack
from haystack.components.generators.chat import OpenAIResponsesChatGenerator
from haystack.utils import Secret

generator = OpenAIResponsesChatGenerator(
    model="helixnet",
    api_base_url="http://127.0.0.1:8000/v1",
    api_key=Secret.from_token("hq_..."),
    generation_kwargs={"extra_body": {"context": "turns"}},
)
# docs end
from haystack.components.generators.chat import OpenAIChatGenerator
from haystack.dataclasses import ChatMessage

SERVER = {
    "api_base_url": "http://127.0.0.1:8000/v1",
    "api_key": Secret.from_token("hq_..."),
    "timeout": cells.TIMEOUT,
    "max_retries": 0,
}


def a_generator(api, model="helixnet"):
    settings = generator.generation_kwargs if api is OpenAIResponsesChatGenerator else {}
    return api(model=model, generation_kwargs=settings, **SERVER)


def turns(api):
    asked = a_generator(api)
    first = asked.run([ChatMessage.from_user(cells.NAME)])["replies"][0]
    second = asked.run(
        [ChatMessage.from_user(cells.NAME), first, ChatMessage.from_user(cells.WHO)]
    )["replies"][0]
    cells.expect(second.text, cells.WHO_ANSWER)


def silence(api):
    pieces = []
    reply = a_generator(api).run(
        [ChatMessage.from_user(cells.SILENT)],
        streaming_callback=lambda chunk: pieces.append(chunk.content),
    )["replies"][0]
    cells.expect(reply.text, cells.SILENT_ANSWER)
    cells.expect("".join(pieces), cells.SILENT_ANSWER)


def stop(api):
    responses = api is OpenAIResponsesChatGenerator
    parameters = {"stop": [cells.STOP]}
    reply = a_generator(api).run(
        [ChatMessage.from_user(cells.STOPPED)],
        generation_kwargs={"extra_body": parameters} if responses else parameters,
    )["replies"][0]
    cells.expect(reply.text, cells.STOPPED_ANSWER)
    return "extra_body" if responses else None


class StopReadingError(Exception):
    """Raised in the middle of a stream."""


def cancel(api):
    def leave(_chunk):
        raise StopReadingError

    try:
        a_generator(api).run([ChatMessage.from_user(cells.ENDLESS)], streaming_callback=leave)
    except StopReadingError:
        return cells.cancel_by_question(cells.ENDLESS)
    raise AssertionError("the stream ended")


def errors(api):
    def ask(*arguments, **parameters):
        a_generator(api, *arguments).run(
            [ChatMessage.from_user("Why?")], generation_kwargs=parameters
        )

    cells.expect_error(
        lambda: ask(temperature=cells.BAD_TEMPERATURE), cells.BAD_TEMPERATURE_MESSAGE
    )
    cells.expect_error(lambda: ask(cells.UNKNOWN_MODEL), cells.UNKNOWN_MODEL_MESSAGE)


if __name__ == "__main__":
    checks = [turns, silence, stop, cancel, errors]
    cells.run(
        Responses=cells.each(OpenAIResponsesChatGenerator, *checks),
        chat_completions=cells.each(OpenAIChatGenerator, *checks),
    )
