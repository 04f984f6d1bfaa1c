"""GGUF files have the same weights as ours, and llama.cpp's server gets the same jobs.

Its server is no package: what stands in for it here is a program that takes the same requests and
always writes the same token. Against the real one, `helixq bench engine --llama-server` runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import psutil
import torch
from click.testing import CliRunner, Result
from gguf import GGUFReader
from safetensors.torch import load_file

from cli.main import main
from jobs.pipeline import Role
from jobs.settings import DEMO_CHECKPOINT
from worker.bench.gguf_files import write_adapter, write_base
from worker.bench.models import synthetic

STAND_IN = """#!{python}
import http.server, json, sys
options = dict(zip(sys.argv[1:], sys.argv[2:]))
class Handler(http.server.BaseHTTPRequestHandler):
    def answer(self, reply):
        body = json.dumps(reply).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def do_GET(self):
        self.answer({{"status": "ok"}})
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with open({log!r}, "a") as out:
            out.write(json.dumps({{**request, "options": options}}) + "\\n")
        if {fails}:
            self.send_error(500, "out of memory")
        else:
            self.answer({{"tokens": [300] * request["n_predict"]}})
address = options["--host"], int(options["--port"])
http.server.ThreadingHTTPServer(address, Handler).serve_forever()
"""


def tensors(file: Path) -> dict[str, torch.Tensor]:
    return {t.name: torch.from_numpy(t.data.copy()) for t in GGUFReader(file).tensors}


def neighbours(weight: torch.Tensor, heads: int) -> torch.Tensor:
    """Reorder rows so that elements that rotate together are adjacent."""
    size = weight.shape[0] // heads
    rows = [
        head * size + side * size // 2 + i
        for head in range(heads)
        for i in range(size // 2)
        for side in (0, 1)
    ]
    return weight[rows]


def test_the_files_hold_the_same_weights(tmp_path: Path) -> None:
    checkpoints = synthetic(
        tmp_path / "model", DEMO_CHECKPOINT / "base", hidden=256, layers=2, rank=3
    )
    config = write_base(checkpoints.base, tmp_path / "base.gguf")
    original, converted = (
        load_file(checkpoints.base / "model.safetensors"),
        tensors(tmp_path / "base.gguf"),
    )
    assert len(converted) == len(original), "each tensor once"
    layer = "model.layers.1.self_attn"
    query, key = original[f"{layer}.q_proj.weight"], original[f"{layer}.k_proj.weight"]
    assert torch.equal(converted["blk.1.attn_q.weight"], neighbours(query, heads=4))
    assert torch.equal(converted["blk.1.attn_k.weight"], neighbours(key, heads=1))
    assert torch.equal(converted["blk.1.attn_v.weight"], original[f"{layer}.v_proj.weight"])
    assert torch.equal(converted["output.weight"], original["lm_head.weight"])

    folder = checkpoints.adapters[Role.CRITIC]
    write_adapter(folder, tmp_path / "critic.gguf", config)
    adapter, converted = (
        load_file(folder / "adapter_model.safetensors"),
        tensors(tmp_path / "critic.gguf"),
    )
    assert len(converted) == len(adapter) == 2 * 7 * 2
    path = f"base_model.model.{layer}.q_proj"
    a, b = adapter[f"{path}.lora_A.weight"], adapter[f"{path}.lora_B.weight"]
    assert torch.equal(converted["blk.1.attn_q.weight.lora_a"], a)
    assert torch.equal(converted["blk.1.attn_q.weight.lora_b"], neighbours(2 * b, heads=4)), (
        "scaled"
    )


def bench(program: Path, *options: str) -> Result:
    sizes = ["--jobs", "3", "--reference-jobs", "1", "--max-output-tokens", "4"]
    return CliRunner().invoke(
        main, ["bench", "engine", *sizes, "--llama-server", str(program), *options]
    )


def script(path: Path, text: str) -> Path:
    path.write_text(text)
    path.chmod(0o755)
    return path


def test_the_server_answers_the_same_jobs_at_each_number_of_slots(tmp_path: Path) -> None:
    log = tmp_path / "requests.jsonl"
    text = STAND_IN.format(python=sys.executable, log=str(log), fails=False)
    done = bench(script(tmp_path / "llama-server", text), "--slots", "1,2", "--json")
    assert done.exit_code == 0, done.stderr
    results = json.loads(done.stdout)["results"]
    runs = [(r["at_once"], r["jobs"], r["tokens"]) for r in results if r["engine"] == "llama.cpp"]
    assert runs == [(1, 1, 12), (2, 3, 36)]

    requests: list[dict[str, Any]] = [json.loads(line) for line in log.read_text().splitlines()]
    # The stages of a warm-up and one job, then of a warm-up and three jobs.
    assert len(requests) == 3 * (1 + 1 + 1 + 3)
    assert [request["lora"][0]["id"] for request in requests[:3]] == [0, 1, 2], (
        "one adapter for each role"
    )
    started = [(r["options"]["--parallel"], r["options"]["--ctx-size"]) for r in requests]
    assert set(started) == {("1", "1024"), ("2", "2048")}
    assert all(request["prompt"] for request in requests)
    assert {(r["temperature"], r["top_k"], r["n_predict"]) for r in requests} == {(0.75, 50, 4)}


def test_a_server_that_does_not_start_is_reported_with_its_output(tmp_path: Path) -> None:
    program = script(tmp_path / "llama-server", "#!/bin/sh\necho unknown option >&2; exit 1\n")
    done = bench(program, "--slots", "1")
    assert done.exit_code == 1
    assert f"{program} does not start: unknown option" in done.stderr


def test_a_failing_server_is_not_measured(tmp_path: Path) -> None:
    text = STAND_IN.format(python=sys.executable, log=str(tmp_path / "requests"), fails=True)
    program = script(tmp_path / "llama-server", text)
    done = bench(program, "--slots", "1")
    assert done.exit_code == 1
    assert "llama.cpp's server: 500" in done.stderr
    assert "out of memory" in done.stderr
    commands = [process.info["cmdline"] or [] for process in psutil.process_iter(["cmdline"])]
    assert not any(str(program) in command for command in commands), "the server was stopped"


def test_a_server_that_cannot_be_started_is_named(tmp_path: Path) -> None:
    program = tmp_path / "llama-server"
    program.write_text("no program")
    done = bench(program, "--slots", "1")
    assert done.exit_code == 1
    assert f"{program} cannot be started: Permission denied" in done.stderr


def test_the_server_is_not_measured_against_a_gpu(tmp_path: Path) -> None:
    done = bench(script(tmp_path / "llama-server", "#!/bin/sh\n"), "--device", "cuda")
    assert done.exit_code == 1
    assert "--llama-server runs on a CPU only" in done.stderr
