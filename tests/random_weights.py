"""A checkpoint of the right shape with random weights: it loads and runs, and knows nothing.

Everything is in Hugging Face's own formats, so that the real loading code loads it. The
weights are random but for one direction of the hidden state, which is made to stand for
"a readable token" and, less so, for "the end": texts are short and made of words.
"""

from __future__ import annotations

from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import MistralConfig, MistralForCausalLM, PreTrainedTokenizerFast

from jobs.pipeline import DEFAULT_SYSTEM, TEMPLATES, Role

#: Training text of the tokenizer.
CORPUS = [
    *(template.replace("{system}", DEFAULT_SYSTEM) for template in TEMPLATES.values()),
    "What is the relationship between Earth's atmosphere, magnetic field and gravity?",
    "Gravity holds the atmosphere close to the Earth, and the magnetic field turns the solar "
    "wind aside, which would otherwise carry the air away.",
    "The answer is clear, but it does not say why. Explain how the field is made, and what "
    "happens to a planet that has none.",
]
SPECIAL = ["<unk>", "<s>", "</s>"]
CONTEXT = 4096


def build(
    folder: Path, *, seed: int = 0, hidden: int = 64, layers: int = 2, context: int = CONTEXT
) -> None:
    """Write ``base`` and a folder for each role's adapter below ``folder``.

    Args:
        folder: where to write; made if it is not there.
        seed: of all random weights.
        hidden: width of the model.
        layers: depth of the model.
        context: tokens that the model takes.
    """
    torch.manual_seed(seed)
    tokenizer = train_tokenizer(context)
    model = _model(tokenizer, hidden, layers, context)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder / "base")
    tokenizer.save_pretrained(folder / "base")
    for role in Role:
        adapter = get_peft_model(
            MistralForCausalLM.from_pretrained(folder / "base"),
            LoraConfig(
                r=4,
                lora_alpha=8,
                target_modules=[f"{p}_proj" for p in ("q", "k", "v", "o", "gate", "up", "down")],
                task_type="CAUSAL_LM",
            ),
        )
        assert isinstance(adapter, PeftModel)
        with torch.no_grad():
            for name, weight in adapter.named_parameters():
                if (
                    "lora_B" in name
                ):  # initialized to zero, which would give all roles the same text
                    weight.normal_(std=0.1)
        adapter.peft_config["default"].base_model_name_or_path = "base"
        adapter.save_pretrained(str(folder / role), save_embedding_layers=False)


def train_tokenizer(context: int) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE: it can spell every text, and frequent words are one token."""
    bpe = Tokenizer(models.BPE(unk_token="<unk>"))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=768,
            special_tokens=SPECIAL,
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", bpe.token_to_id("<s>"))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=bpe,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        model_max_length=context,
    )


def _model(
    tokenizer: PreTrainedTokenizerFast, hidden: int, layers: int, context: int
) -> MistralForCausalLM:
    heads = hidden // 16
    config = MistralConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=hidden * 2,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads // 2,
        max_position_embeddings=context,
        sliding_window=None,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    model = MistralForCausalLM(config)
    # "Ġ" is how byte-level tokens spell the space before a word.
    tokens = tokenizer.convert_ids_to_tokens(list(range(len(tokenizer))))
    words = torch.tensor([t.startswith("Ġ") and t[1:].isalpha() and len(t) > 3 for t in tokens])
    with torch.no_grad():
        direction = torch.nn.functional.normalize(torch.randn(hidden), dim=0)
        model.model.embed_tokens.weight.normal_().add_(direction * 8)
        model.lm_head.weight.normal_(std=0.15)
        model.lm_head.weight[words] += direction * 0.6
        model.lm_head.weight[~words] -= direction * 2
        model.lm_head.weight[tokenizer.eos_token_id] = direction * 0.9
    return model
