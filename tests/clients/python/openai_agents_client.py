"""The OpenAI Agents SDK for Python."""

import asyncio

import cells

# docs: openai-agents
from agents import Agent, ModelSettings, set_default_openai_client, set_tracing_disabled
from openai import AsyncOpenAI

set_default_openai_client(AsyncOpenAI(base_url="http://127.0.0.1:8000/v1", api_key="hq_..."))
set_tracing_disabled(True)  # traces would go to OpenAI
agent = Agent(
    name="Helix", model="helixnet", model_settings=ModelSettings(extra_body={"context": "turns"})
)
# docs end
from agents import OpenAIChatCompletionsModel, OpenAIResponsesModel, Runner


def an_agent(api, model="helixnet", **settings):
    # Each check has an event loop of its own, and so a client of its own.
    client = AsyncOpenAI(
        base_url="http://127.0.0.1:8000/v1", api_key="hq_...", timeout=cells.TIMEOUT
    )
    return agent.clone(
        model=api(model=model, openai_client=client),
        model_settings=agent.model_settings.resolve(ModelSettings(**settings)),
    )


def turns(api):
    async def ask():
        asked = an_agent(api)
        first = await Runner.run(asked, cells.NAME)
        items = [*first.to_input_list(), {"role": "user", "content": cells.WHO}]
        return (await Runner.run(asked, items)).final_output

    cells.expect(asyncio.run(ask()), cells.WHO_ANSWER)


def silence(api):
    async def read():
        result = Runner.run_streamed(an_agent(api), cells.SILENT)
        text = ""
        async for event in result.stream_events():
            if (
                event.type == "raw_response_event"
                and event.data.type == "response.output_text.delta"
            ):
                text += event.data.delta
        cells.expect(text, cells.SILENT_ANSWER)
        return result.final_output

    cells.expect(asyncio.run(read()), cells.SILENT_ANSWER)


def stop(api):
    asked = an_agent(api, extra_body={"stop": [cells.STOP]})
    cells.expect(asyncio.run(Runner.run(asked, cells.STOPPED)).final_output, cells.STOPPED_ANSWER)
    return "extra_body"


def cancel(api):
    async def read():
        result = Runner.run_streamed(an_agent(api), cells.ENDLESS)
        identifier = None
        async for event in result.stream_events():
            if event.type == "raw_response_event" and event.data.type == "response.created":
                identifier = event.data.response.id
            if event.type == "raw_response_event" and "reasoning" in event.data.type:
                result.cancel()
        return identifier

    identifier = asyncio.run(read())
    if api is OpenAIChatCompletionsModel:
        return cells.cancel_by_question(cells.ENDLESS)
    return cells.cancel_by_id(identifier)


def errors(api):
    def ask(*arguments, **settings):
        asyncio.run(Runner.run(an_agent(api, *arguments, **settings), "Why?"))

    cells.expect_error(
        lambda: ask(temperature=cells.BAD_TEMPERATURE), cells.BAD_TEMPERATURE_MESSAGE
    )
    cells.expect_error(lambda: ask(cells.UNKNOWN_MODEL), cells.UNKNOWN_MODEL_MESSAGE)


if __name__ == "__main__":
    checks = [turns, silence, stop, cancel, errors]
    cells.run(
        Responses=cells.each(OpenAIResponsesModel, *checks),
        chat_completions=cells.each(OpenAIChatCompletionsModel, *checks),
    )
