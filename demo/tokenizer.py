"""The miniature's tokenizer: a byte-level BPE with a token for each digit."""

from __future__ import annotations

import itertools
import random

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from demo import corpus
from demo.corpus import Lesson
from jobs.pipeline import DEFAULT_SYSTEM, TEMPLATES

VOCABULARY = 768
CONTEXT = 4096
UNKNOWN, BEGIN, END = "<unk>", "<s>", "</s>"


def train(seed: int) -> PreTrainedTokenizerFast:
    """Train the tokenizer on the miniature's texts.

    Any text can be encoded, if necessary as bytes. A frequent word is one token with the space before
    it. Each digit is a token of its own, so that columns align.
    """
    bpe = Tokenizer(models.BPE(unk_token=UNKNOWN))
    pieces = Regex(r" ?[A-Za-z]+|\d| ?[^\sA-Za-z\d]|\s")
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(pieces, "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    rng = random.Random(seed)
    frame = [
        text.format_map(dict.fromkeys(("question", "answer", "critique"), "") | {"system": ""})
        for text in TEMPLATES.values()
    ]
    bpe.train_from_iterator(
        [*frame, DEFAULT_SYSTEM, *itertools.islice(corpus.documents(rng, Lesson.COLUMNS), 5000)],
        trainers.BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[UNKNOWN, BEGIN, END],
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    bpe.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", special_tokens=[(BEGIN, bpe.token_to_id(BEGIN))]
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]  # transformers has no types there
        tokenizer_object=bpe,
        bos_token=BEGIN,
        eos_token=END,
        unk_token=UNKNOWN,
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )
