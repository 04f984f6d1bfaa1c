"""llama.cpp's server as an engine, for comparison: the same weights, prompts and sampling.

The server applies one adapter to each request, and batches requests with the same adapter.
"""

from __future__ import annotations

import socket
import subprocess
import tempfile
import time
from pathlib import Path

import httpx2
from transformers import PreTrainedTokenizerBase

from worker.bench.gguf_files import write_adapter, write_base
from worker.bench.models import Model
from worker.engine.interface import Completion, EngineError, FinishReason, Generation, Request
from worker.engine.tokenization.encoder import Encoder

#: Maximum seconds for the server to start, and for a request.
TIMEOUT = 600.0
#: Seconds between two polls of a starting server.
POLL_INTERVAL = 0.1


class LlamaServer:
    """A server process, which runs until `close`."""

    name = "llama.cpp"

    def __init__(
        self,
        program: Path,
        model: Model,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_model_len: int,
        max_num_seqs: int,
    ) -> None:
        """Convert the model and start the server; return when it responds.

        Args:
            program: llama-server.
            model: a Mistral without a sliding window, and adapters on its projections.
            tokenizer: the base's.
            max_model_len: maximum number of tokens of prompt and output together.
            max_num_seqs: maximum number of requests that are decoded together.

        Raises:
            EngineError: the server does not start.
        """
        self.max_model_len = max_model_len
        self.max_num_seqs = max_num_seqs
        self._tokenizer = tokenizer
        self._encode = Encoder(tokenizer, max_model_len)
        self._adapters = list(model.adapters)
        self._folder = tempfile.TemporaryDirectory(prefix="helixq-llama-")
        folder = Path(self._folder.name)
        command = [str(program), *_converted(model, folder)]
        with socket.create_server(("127.0.0.1", 0)) as probe:
            port = int(probe.getsockname()[1])
        command += ["--host", "127.0.0.1", "--port", str(port), "--offline"]
        command += ["--parallel", str(max_num_seqs)]
        command += ["--ctx-size", str(max_num_seqs * max_model_len)]
        self._log = folder / "server.log"
        with self._log.open("wb") as log:
            try:
                self._process = subprocess.Popen(command, stdout=log, stderr=log)
            except OSError as error:
                self._folder.cleanup()
                raise EngineError(f"{program} cannot be started: {error.strerror}") from error
        # Proxies of the environment do not apply to loopback.
        url = f"http://127.0.0.1:{port}"
        self._client = httpx2.Client(base_url=url, timeout=TIMEOUT, trust_env=False)
        try:
            self._until_ready(program)
        except BaseException:
            self.close()
            raise

    def submit(self, request: Request) -> Generation:
        """Run a request to its end; return its finished generation.

        Raises:
            EngineError: the server does not respond.
        """
        prompt_token_ids, max_output_tokens = self._encode(request)
        sampling = request.sampling
        body = {
            "prompt": prompt_token_ids,
            "n_predict": max_output_tokens,
            "temperature": sampling.temperature,
            "top_k": sampling.top_k,
            "top_p": sampling.top_p,
            "samplers": ["temperature", "top_k", "top_p"],
            "seed": sampling.seed % 2**32,
            "lora": [{"id": self._adapters.index(request.role), "scale": 1.0}],
            "return_tokens": True,
        }
        try:
            reply = self._client.post("/completion", json=body)
        except httpx2.TransportError as error:
            raise EngineError(f"llama.cpp's server does not respond: {error}") from error
        if reply.status_code != 200:
            raise EngineError(f"llama.cpp's server: {reply.status_code}: {reply.text}")
        tokens: list[int] = reply.json()["tokens"]
        generation = Generation(request)
        is_cut = len(tokens) == max_output_tokens
        generation.finish(
            Completion(
                text=str(self._tokenizer.decode(tokens, skip_special_tokens=True)),
                deltas=[],
                prompt_tokens=len(prompt_token_ids),
                output_tokens=len(tokens),
                finish_reason=FinishReason.LENGTH if is_cut else FinishReason.STOP,
                max_output_tokens=max_output_tokens,
                first_token_at=None,
            )
        )
        return generation

    def close(self) -> None:
        self._client.close()
        self._process.terminate()
        self._process.wait()
        self._folder.cleanup()

    def _until_ready(self, program: Path) -> None:
        deadline = time.monotonic() + TIMEOUT
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                if self._client.get("/health").status_code == 200:
                    return
            except httpx2.TransportError:
                pass  # it does not listen yet
            time.sleep(POLL_INTERVAL)  # A server that starts notifies nobody.
        last = self._log.read_text(errors="replace").strip().splitlines()[-1:]
        raise EngineError(f"{program} does not start: {' '.join(last)}")


def _converted(model: Model, folder: Path) -> list[str]:
    """Write the GGUF files; return the server's options that name them."""
    config = write_base(model.base, folder / "base.gguf")
    files = [folder / f"{role}.gguf" for role in model.adapters]
    for adapter, file in zip(model.adapters.values(), files, strict=True):
        write_adapter(adapter, file, config)
    adapters = ",".join(map(str, files))
    return ["--model", str(folder / "base.gguf"), "--lora", adapters, "--lora-init-without-apply"]
