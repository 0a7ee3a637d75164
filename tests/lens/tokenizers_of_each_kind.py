"""Tiny tokenizers of the kinds that models have, each trained on a few words here."""

from __future__ import annotations

from collections.abc import Callable

import transformers as hf
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

READ = [
    "The capital of France is Paris, and Rome is free.",
    "unaffable people like café and naïve 😀 emoji",
    "is free w4 w5 hello world",
] * 3
SPECIAL = ["<bos>", "<eos>", "<pad>", "<unk>"]
SPACE = "\N{LOWER ONE EIGHTH BLOCK}"


def _finished(made: Tokenizer, bos: bool) -> hf.PreTrainedTokenizerFast:
    if bos:
        begin = [("<bos>", made.token_to_id("<bos>"))]
        made.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=begin)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", "unk_token": "<unk>"}
    return hf.PreTrainedTokenizerFast(tokenizer_object=made, **names)


def byte_level(bos: bool = True) -> hf.PreTrainedTokenizerFast:
    """As in GPT-2 and most models since."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer, made.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    letters = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=SPECIAL, initial_alphabet=letters, show_progress=False
    )  # fmt: skip
    made.train_from_iterator(READ, trainer)
    return _finished(made, bos)


def metaspace(bos: bool = True) -> hf.PreTrainedTokenizerFast:
    """As in newer conversions of sentencepiece: a space is put before every text that has none."""
    made = Tokenizer(models.BPE(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    made.train_from_iterator(
        READ, trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, show_progress=False)
    )  # fmt: skip
    return _finished(made, bos)


def llama(bos: bool = True) -> hf.PreTrainedTokenizerFast:
    """As in Llama 2: a space is put before every text, also before one that has its own."""
    made = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True))
    made.normalizer = normalizers.Sequence([normalizers.Prepend(SPACE), normalizers.Replace(" ", SPACE)])
    made.decoder = decoders.Sequence(
        [decoders.Replace(SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    made.pre_tokenizer = pre_tokenizers.Split(SPACE, "merged_with_next")  # so that it learns words, not sentences
    made.train_from_iterator(
        READ, trainers.BpeTrainer(vocab_size=330, special_tokens=SPECIAL, show_progress=False)
    )  # fmt: skip
    made.pre_tokenizer = None
    return _finished(made, bos)


def unigram(bos: bool = True) -> hf.PreTrainedTokenizerFast:
    """As in T5 and Gemma's ancestors: sentencepiece's own kind of model."""
    made = Tokenizer(models.Unigram())
    made.pre_tokenizer, made.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=SPECIAL, unk_token="<unk>", show_progress=False
    )  # fmt: skip
    made.train_from_iterator(READ, trainer)
    return _finished(made, bos)


def wordpiece(bos: bool = True) -> hf.PreTrainedTokenizerFast:
    """As in BERT: a piece that does not begin a word is marked."""
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.pre_tokenizer, made.decoder = pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    made.train_from_iterator(
        READ, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL, show_progress=False)
    )  # fmt: skip
    return _finished(made, bos)


KINDS: dict[str, Callable[..., hf.PreTrainedTokenizerFast]] = {
    "byte_level": byte_level,
    "metaspace": metaspace,
    "llama": llama,
    "unigram": unigram,
    "wordpiece": wordpiece,
}
