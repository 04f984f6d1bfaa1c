"""The commands `helixq lora extract`, `merge` and `inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner

from cli.main import main
from tests.integration.lora.fine_tunes import (
    DOWN,
    RANK,
)
from worker.checkpoints import digests
from worker.lora.inspect import inspect


def run(*arguments: object, status: int = 0) -> Any:
    result = CliRunner().invoke(main, ["lora", *map(str, arguments)])
    assert result.exit_code == status, result.output
    return result


def test_the_commands_print_tables_and_json(base: Path, tuned: Path, tmp_path: Path) -> None:
    out, models = tmp_path / "out", ("--base", base, "--tuned", tuned)
    table = run("extract", *models, "--out", out, "--rank", RANK).output
    assert f"{DOWN.removesuffix('.weight')} " in table
    assert "\ntotal " in table
    printed = json.loads(
        run("extract", *models, "--out", out, "--rank", 4, "--force", "--json").stdout
    )
    assert len(printed["layers"]) == 14
    assert printed["total"]["kept"] == pytest.approx(1, abs=1e-6)

    merged = json.loads(
        run("merge", "--base", base, "--adapter", out, "--out", tmp_path / "m", "--json").stdout
    )
    assert merged["layers"] == 14

    described = json.loads(run("inspect", out, "--json").stdout)
    assert described["digest"] == f"sha256:{digests.digest(out)}"
    assert (described["scalings"], described["unsupported_reasons"]) == ([1.0], [])
    lines = run("inspect", out).output
    assert "scaling     1\n" in lines
    assert "batching    yes\n" in lines


def test_the_cards_alpha_gives_a_warning(base: Path, tuned: Path, tmp_path: Path) -> None:
    models = ("--base", base, "--tuned", tuned, "--out", tmp_path / "out")
    result = run("extract", *models, "--rank", 4, "--alpha", 8)
    assert "Warning: with --alpha 8 and rank 4, the adapter will apply 2 times" in result.stderr
    assert inspect(tmp_path / "out").scalings == [2.0]


def test_a_pickle_is_converted(pickled: Path) -> None:
    assert "file        adapter_model.bin" in run("inspect", pickled).output
    file = str(pickled / "adapter_model.safetensors")
    for converted in (True, False):
        [done] = json.loads(run("convert", pickled, "--json").output)
        assert done == {"adapter": str(pickled), "file": file, "converted": converted}
    assert run("convert", pickled).output == f"{pickled}: has safetensors\n"
    assert "file        adapter_model.safetensors" in run("inspect", pickled).output


def test_bad_input_is_one_sentence(base: Path, tuned: Path, tmp_path: Path) -> None:
    models = ("--base", base, "--tuned", tuned, "--out", tmp_path / "out")
    message = run("extract", *models, "--rank", 99, status=1).stderr
    assert message.startswith("Error: the rank 99 is too large for model.layers.0.self_attn.k_proj")
    assert message.count("\n") == 1
    for arguments, sentence in (
        (("inspect", tmp_path), "there is no adapter_config.json in"),
        (("inspect", "/no/such/folder"), "there is no folder /no/such/folder"),
        (
            ("extract", *models, "--keep", "all", "--rank", 4),
            "not one of embeddings, head and norms",
        ),
    ):
        status = 2 if "--keep" in arguments else 1
        assert sentence in run(*arguments, status=status).stderr
    if not torch.cuda.is_available():
        message = run("extract", *models, "--device", "cuda", status=1).stderr
        assert "PyTorch sees no CUDA device here" in message
