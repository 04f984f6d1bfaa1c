"""LlamaIndex."""

import cells
from llama_index.core.llms import ChatMessage

# docs: llama-index
from llama_index.llms.openai import OpenAIResponses

llm = OpenAIResponses(
    model="helixnet",
    api_base="http://127.0.0.1:8000/v1",
    api_key="hq_...",
    context_window=4096,
    additional_kwargs={"extra_body": {"context": "turns"}},
)
# docs end
# docs: llama-index-chat
from llama_index.llms.openai_like import OpenAILike

chat = OpenAILike(
    model="helixnet",
    api_base="http://127.0.0.1:8000/v1",
    api_key="hq_...",
    context_window=4096,
    is_chat_model=True,
)
# docs end

llm.timeout = chat.timeout = cells.TIMEOUT


def turns(asked):
    first = asked.chat([ChatMessage(role="user", content=cells.NAME)])
    cells.expect(first.message.content, f"You said: {cells.NAME}")
    second = asked.chat(
        [
            ChatMessage(role="user", content=cells.NAME),
            first.message,
            ChatMessage(role="user", content=cells.WHO),
        ]
    )
    cells.expect(second.message.content, cells.WHO_ANSWER)


def silence(asked):
    stream = asked.stream_chat([ChatMessage(role="user", content=cells.SILENT)])
    cells.expect("".join(chunk.delta or "" for chunk in stream), cells.SILENT_ANSWER)


def stop(asked):
    parameters = {"stop": [cells.STOP]}
    if asked is llm:
        parameters = {"extra_body": parameters}
    reply = asked.chat([ChatMessage(role="user", content=cells.STOPPED)], **parameters)
    cells.expect(reply.message.content, cells.STOPPED_ANSWER)
    return "extra_body" if asked is llm else None


def cancel(asked):
    stream = asked.stream_chat([ChatMessage(role="user", content=cells.ENDLESS)])
    raw = next(stream).raw
    stream.close()
    response = getattr(raw, "response", raw)
    if getattr(response, "id", None):
        return cells.cancel_by_id(response.id)
    return cells.cancel_by_question(cells.ENDLESS)


def errors(asked):
    def ask(**parameters):
        asked.chat([ChatMessage(role="user", content="Why?")], **parameters)

    cells.expect_error(
        lambda: ask(temperature=cells.BAD_TEMPERATURE), cells.BAD_TEMPERATURE_MESSAGE
    )
    cells.expect_error(lambda: ask(model=cells.UNKNOWN_MODEL), cells.UNKNOWN_MODEL_MESSAGE)


if __name__ == "__main__":
    checks = [turns, silence, stop, cancel, errors]
    cells.run(Responses=cells.each(llm, *checks), chat_completions=cells.each(chat, *checks))
