"""Pydantic AI."""

import asyncio

import cells

# docs: pydantic-ai
from pydantic_ai import Agent
from pydantic_ai.models.openai import OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider

provider = OpenAIProvider(base_url="http://127.0.0.1:8000/v1", api_key="hq_...")
settings = {"extra_body": {"context": "turns"}}
agent = Agent(OpenAIResponsesModel("helixnet", provider=provider), model_settings=settings)
# docs end
from pydantic import BaseModel
from pydantic_ai.models.openai import OpenAIChatModel


def an_agent(api, model="helixnet", **parameters):
    # Each check has an event loop of its own, and so a client of its own.
    provider = OpenAIProvider(base_url="http://127.0.0.1:8000/v1", api_key="hq_...")
    return Agent(api(model, provider=provider), model_settings=settings, **parameters)


def turns(api):
    async def ask():
        asked = an_agent(api)
        first = await asked.run(cells.NAME)
        second = await asked.run(cells.WHO, message_history=first.all_messages())
        parts = [part.part_kind for part in second.all_messages()[-1].parts]
        return second.output, "thinking" in parts

    cells.expect(asyncio.run(ask()), (cells.WHO_ANSWER, True))


def silence(api):
    async def read():
        settings = {"timeout": cells.TIMEOUT}
        async with an_agent(api).run_stream(cells.SILENT, model_settings=settings) as result:
            return "".join([text async for text in result.stream_text(delta=True)])

    cells.expect(asyncio.run(read()), cells.SILENT_ANSWER)


def stop(api):
    responses = api is OpenAIResponsesModel
    parameters = (
        {"extra_body": {"stop": [cells.STOP]}} if responses else {"stop_sequences": [cells.STOP]}
    )
    result = asyncio.run(an_agent(api).run(cells.STOPPED, model_settings=parameters))
    cells.expect(result.output, cells.STOPPED_ANSWER)
    return "extra_body" if responses else None


def cancel(api):
    async def read():
        async with an_agent(api).run_stream_events(cells.ENDLESS) as events:
            async for _ in events:
                return

    asyncio.run(read())
    return cells.cancel_by_question(cells.ENDLESS)


def errors(api):
    def ask(*arguments, **settings):
        asyncio.run(an_agent(api, *arguments).run("Why?", model_settings=settings))

    cells.expect_error(
        lambda: ask(temperature=cells.BAD_TEMPERATURE), cells.BAD_TEMPERATURE_MESSAGE
    )
    cells.expect_error(lambda: ask(cells.UNKNOWN_MODEL), cells.UNKNOWN_MODEL_MESSAGE)

    class City(BaseModel):
        name: str

    # Output that is not text needs tools.
    cells.expect_error(
        lambda: asyncio.run(an_agent(api, output_type=City).run("Why?")),
        "`tools` is not supported",
    )


if __name__ == "__main__":
    checks = [turns, silence, stop, cancel, errors]
    cells.run(
        Responses=cells.each(OpenAIResponsesModel, *checks),
        chat_completions=cells.each(OpenAIChatModel, *checks),
    )
