"""instructor asks for what HelixQ does not have: it is told so."""

import cells

# docs: instructor
import instructor
from openai import OpenAI

client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="hq_...")
structured = instructor.from_openai(client, mode=instructor.Mode.MD_JSON)
# docs end
from pydantic import BaseModel


class City(BaseModel):
    name: str


def ask(mode):
    patched = instructor.from_openai(client, mode=mode)
    patched.chat.completions.create(
        model="helixnet",
        messages=[{"role": "user", "content": "Which city?"}],
        response_model=City,
        max_retries=0,
    )


def errors():
    for mode, parameter in [
        (instructor.Mode.TOOLS, "tools"),
        (instructor.Mode.JSON, "response_format"),
        (instructor.Mode.JSON_SCHEMA, "response_format"),
        (instructor.Mode.RESPONSES_TOOLS, "tools"),
    ]:
        cells.expect_error(lambda mode=mode: ask(mode), f"`{parameter}` is not supported")


if __name__ == "__main__":
    cells.run(refusals=[errors])
