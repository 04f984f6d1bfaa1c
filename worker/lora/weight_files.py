"""Find the weights of a model as transformers does."""

from __future__ import annotations

from pathlib import Path

from worker.lora import LoraError
from worker.lora.files import read_json
from worker.lora.tensors import Tensors

#: Files of a model's weights, with the names that transformers has for them.
SAFE_WEIGHTS_NAME = "model.safetensors"
SAFE_WEIGHTS_INDEX_NAME = "model.safetensors.index.json"


def open_checkpoint(folder: Path) -> Tensors:
    """Open the tensors that transformers reads for a model, by their names in the files.

    Raises:
        LoraError: there are no weights, a file is missing or damaged, or transformers would not read
            safetensors.
    """
    files, weight_map = weight_files(folder)
    tensors = Tensors(files)
    if missing := sorted(weight_map.keys() - tensors.entries.keys()):
        raise LoraError(
            f"{folder / weight_map[missing[0]]} has no {missing[0]}, which the index in {folder} lists"
        )
    return tensors


def weight_files(folder: Path) -> tuple[list[Path], dict[str, str]]:
    """Find the files that transformers' ``from_pretrained`` reads.

    In order of precedence: the file that the config's ``transformers_weights`` names; `SAFE_WEIGHTS_NAME`, even with a
    `SAFE_WEIGHTS_INDEX_NAME` beside it; all files that the index names, with all tensors in them.

    Returns:
        the files, and the index's ``weight_map``, which is empty if no index is read.

    Raises:
        LoraError: there are no weights, a file is missing, or transformers would not read safetensors.
    """
    if (folder / "adapter_config.json").is_file():
        raise LoraError(
            f"{folder} has an adapter_config.json, so transformers adds that adapter to the model when "
            "it loads it; give a folder with a model alone"
        )
    if any(folder.glob("*.distcp")):
        raise LoraError(
            f"{folder} is a distributed checkpoint of PyTorch; load it with transformers and save it "
            "again, which writes safetensors"
        )
    name = read_json(folder / "config.json").get("transformers_weights")
    if name is None:
        name = next(
            (n for n in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME) if (folder / n).is_file()),
            None,
        )
    if name is None:
        if pickles := sorted(file.name for file in folder.glob("pytorch_model*.bin")):
            raise LoraError(
                f"{folder} has its weights in a pickle, {pickles[0]}; load it with transformers and "
                "save it again, which writes safetensors"
            )
        raise LoraError(
            f"there is no {folder / SAFE_WEIGHTS_NAME}; give a folder with a model as safetensors files"
        )
    if not str(name).endswith(".index.json"):
        return [_require_file(folder / str(name), "config.json")], {}
    shards = read_json(folder / str(name)).get("weight_map")
    if not isinstance(shards, dict) or not shards:
        raise LoraError(f"{folder / str(name)} has no weight_map")
    return [
        _require_file(folder / shard, str(name)) for shard in sorted(set(shards.values()))
    ], shards


def _require_file(file: Path, index: str) -> Path:
    if not file.is_file():
        raise LoraError(f"there is no {file}, which {index} names; fetch it again")
    return file
