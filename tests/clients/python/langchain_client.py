"""LangChain."""

import cells

# docs: langchain-openai
from langchain_openai import ChatOpenAI

model = ChatOpenAI(
    model="helixnet",
    base_url="http://127.0.0.1:8000/v1",
    api_key="hq_...",
    use_responses_api=True,
    output_version="responses/v1",
    extra_body={"context": "turns"},
)
# docs end

chat_model = ChatOpenAI(
    model="helixnet", base_url="http://127.0.0.1:8000/v1", api_key="hq_...", timeout=cells.TIMEOUT
)
MODELS = {"Responses": model.model_copy(update={"request_timeout": cells.TIMEOUT})}
MODELS["chat completions"] = chat_model


def turns(api):
    asked = MODELS[api]
    first = asked.invoke(cells.NAME)
    second = asked.invoke([("user", cells.NAME), first, ("user", cells.WHO)])
    cells.expect(second.text, cells.WHO_ANSWER)


def silence(api):
    text = "".join(chunk.text for chunk in MODELS[api].stream(cells.SILENT))
    cells.expect(text, cells.SILENT_ANSWER)


def stop(api):
    if api == "Responses":
        asked = model.model_copy(update={"extra_body": {"stop": [cells.STOP]}})
        cells.expect(asked.invoke(cells.STOPPED).text, cells.STOPPED_ANSWER)
        return "extra_body"
    cells.expect(chat_model.invoke(cells.STOPPED, stop=[cells.STOP]).text, cells.STOPPED_ANSWER)
    return None


def cancel(api):
    stream = MODELS[api].stream(cells.ENDLESS)
    chunk = next(chunk for chunk in stream if not chunk.text)
    stream.close()
    identifier = chunk.response_metadata.get("id") or chunk.id
    if str(identifier).startswith(("resp_", "chatcmpl-")):
        return cells.cancel_by_id(identifier)
    return cells.cancel_by_question(cells.ENDLESS)


def errors(api):
    cells.expect_error(
        lambda: MODELS[api].invoke("Why?", temperature=cells.BAD_TEMPERATURE),
        cells.BAD_TEMPERATURE_MESSAGE,
    )
    cells.expect_error(
        lambda: MODELS[api].invoke("Why?", model=cells.UNKNOWN_MODEL), cells.UNKNOWN_MODEL_MESSAGE
    )


if __name__ == "__main__":
    checks = [turns, silence, stop, cancel, errors]
    cells.run(
        Responses=cells.each("Responses", *checks),
        chat_completions=cells.each("chat completions", *checks),
    )
