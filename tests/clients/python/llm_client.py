"""`llm`, the command line."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cells

MODELS = """\
# docs: llm
- model_id: helixnet
  model_name: helixnet
  api_base: http://127.0.0.1:8000/v1
  api_key_name: helixq
  responses: true
# docs end
- model_id: helixnet-chat
  model_name: helixnet
  api_base: http://127.0.0.1:8000/v1
  api_key_name: helixq
- model_id: nothing
  model_name: other
  api_base: http://127.0.0.1:8000/v1
  api_key_name: helixq
  responses: true
- model_id: nothing-chat
  model_name: other
  api_base: http://127.0.0.1:8000/v1
  api_key_name: helixq
"""
LLM = [str(Path(sys.executable).parent / "llm"), "prompt", "--key", "hq_..."]


def ask(*arguments, user_path):
    folder = Path(os.environ["LLM_USER_PATH"]) / user_path
    folder.mkdir(exist_ok=True)
    (folder / "extra-openai-models.yaml").write_text(MODELS, encoding="utf-8")
    return subprocess.Popen(
        [*LLM, *arguments],
        env={**os.environ, "LLM_USER_PATH": str(folder)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def answer(*arguments, user_path):
    output, errors = ask(*arguments, user_path=user_path).communicate()
    if not output:
        raise RuntimeError(errors)
    return output.strip()


def turns(suffix):
    folder = f"turns{suffix}"
    (Path(os.environ["LLM_USER_PATH"]) / folder / "logs.db").unlink(missing_ok=True)
    model = f"helixnet{suffix}"
    cells.expect(answer("-m", model, cells.NAME, user_path=folder), f"You said: {cells.NAME}")
    reply = answer("-m", model, "--continue", cells.WHO, user_path=folder)
    if suffix:
        return cells.expect(reply, cells.WHO_ANSWER)
    # It has no way to set a parameter that it does not know.
    cells.expect(reply, "I do not know your name.")
    return "no memory"


def silence(suffix):
    reply = answer("-m", f"helixnet{suffix}", cells.SILENT, user_path=f"silence{suffix}")
    cells.expect(reply, cells.SILENT_ANSWER)


def stop(suffix):
    reply = answer(
        "-m", f"helixnet{suffix}", "-o", "stop", cells.STOP, cells.STOPPED, user_path="stop"
    )
    cells.expect(reply, cells.STOPPED_ANSWER)


def cancel(suffix):
    process = ask("-m", f"helixnet{suffix}", cells.ENDLESS, user_path=f"cancel{suffix}")
    while cells.find(cells.ENDLESS) is None:
        time.sleep(0.1)  # nothing tells when the job is there
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    return cells.cancel_by_question(cells.ENDLESS)


def errors(suffix):
    folder = f"errors{suffix}"
    model = f"helixnet{suffix}"
    cells.expect_error(
        lambda: answer("-m", model, "-o", "max_tokens", "2000000", "Why?", user_path=folder),
        "must be less than or equal to 1048576",
    )
    cells.expect_error(
        lambda: answer("-m", f"nothing{suffix}", "Why?", user_path=folder),
        cells.UNKNOWN_MODEL_MESSAGE,
    )


if __name__ == "__main__":
    checks = [turns, silence, cancel, errors]
    cells.run(
        Responses=cells.each("", *checks), chat_completions=cells.each("-chat", *checks, stop)
    )
