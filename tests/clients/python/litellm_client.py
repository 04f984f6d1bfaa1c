"""litellm."""

import cells

# docs: litellm
import litellm

server = {"api_base": "http://127.0.0.1:8000/v1", "api_key": "hq_..."}
reply = litellm.completion(
    model="openai/helixnet", messages=[{"role": "user", "content": "Why?"}], **server
)
# docs end

server["timeout"] = cells.TIMEOUT
TURNS = {"extra_body": {"context": "turns"}}

# docs: litellm-responses
# Of a model that litellm does not know, it waits for the whole response and then streams it.
litellm.register_model(
    {"openai/helixnet": {"litellm_provider": "openai", "supports_native_streaming": True}}
)
# docs end


def turns():
    first = litellm.responses(model="openai/helixnet", input=cells.NAME, **server)
    items = [
        {"role": "user", "content": cells.NAME},
        *(item.model_dump() for item in first.output),
        {"role": "user", "content": cells.WHO},
    ]
    second = litellm.responses(model="openai/helixnet", input=items, **TURNS, **server)
    cells.expect(second.output_text, cells.WHO_ANSWER)


def silence():
    text = ""
    for event in litellm.responses(
        model="openai/helixnet", input=cells.SILENT, stream=True, **server
    ):
        if event.type == "response.output_text.delta":
            text += event.delta
    cells.expect(text, cells.SILENT_ANSWER)


def stop():
    response = litellm.responses(
        model="openai/helixnet", input=cells.STOPPED, extra_body={"stop": [cells.STOP]}, **server
    )
    cells.expect(response.output_text, cells.STOPPED_ANSWER)
    return "extra_body"


def cancel():
    response = litellm.responses(
        model="openai/helixnet", input=cells.ENDLESS, background=True, **server
    )
    cancelled = litellm.cancel_responses(
        response_id=response.id, custom_llm_provider="openai", **server
    )
    cells.expect(cancelled.status, "cancelled")


def errors():
    cells.expect_error(
        lambda: litellm.responses(
            model="openai/helixnet", input="Why?", temperature=cells.BAD_TEMPERATURE, **server
        ),
        cells.BAD_TEMPERATURE_MESSAGE,
    )
    error = cells.expect_error(
        lambda: litellm.get_responses(
            response_id=cells.UNKNOWN_ID, custom_llm_provider="openai", **server
        ),
        cells.UNKNOWN_ID_MESSAGE,
    )
    assert isinstance(error, litellm.NotFoundError), error


def turns_chat():
    cells.expect(reply.choices[0].message.content, "You said: Why?")
    messages = [{"role": "user", "content": cells.NAME}]
    first = litellm.completion(model="openai/helixnet", messages=messages, **server)
    message = first.choices[0].message
    cells.expect(message.reasoning_content[:7], "ACTOR: ")
    messages += [message.model_dump(), {"role": "user", "content": cells.WHO}]
    second = litellm.completion(model="openai/helixnet", messages=messages, **server)
    cells.expect(second.choices[0].message.content, cells.WHO_ANSWER)


def silence_chat():
    stream = litellm.completion(
        model="openai/helixnet",
        messages=[{"role": "user", "content": cells.SILENT}],
        stream=True,
        **server,
    )
    text = "".join(chunk.choices[0].delta.content or "" for chunk in stream)
    cells.expect(text, cells.SILENT_ANSWER)


def stop_chat():
    completion = litellm.completion(
        model="openai/helixnet",
        messages=[{"role": "user", "content": cells.STOPPED}],
        stop=[cells.STOP],
        **server,
    )
    cells.expect(completion.choices[0].message.content, cells.STOPPED_ANSWER)


def cancel_chat():
    stream = litellm.completion(
        model="openai/helixnet",
        messages=[{"role": "user", "content": cells.ENDLESS}],
        stream=True,
        **server,
    )
    cells.cancel_by_id(next(iter(stream)).id)


def errors_chat():
    def ask(model, **parameters):
        litellm.completion(
            model=model, messages=[{"role": "user", "content": "Why?"}], **parameters, **server
        )

    error = cells.expect_error(
        lambda: ask("openai/helixnet", temperature=cells.BAD_TEMPERATURE),
        cells.BAD_TEMPERATURE_MESSAGE,
    )
    assert isinstance(error, litellm.BadRequestError), error
    error = cells.expect_error(
        lambda: ask(f"openai/{cells.UNKNOWN_MODEL}"), cells.UNKNOWN_MODEL_MESSAGE
    )
    assert isinstance(error, litellm.NotFoundError), error


if __name__ == "__main__":
    cells.run(
        Responses=[turns, silence, stop, cancel, errors],
        chat_completions=[turns_chat, silence_chat, stop_chat, cancel_chat, errors_chat],
    )
