"""Make Llama models with random weights, and tokenizers of any size: for measurements where only time counts."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

CONTEXT = 2048
ONSETS = "b c d f g h j k l m n p r s t v w z br ch cl dr fl gr kr pl pr sh sl st tr".split()
VOWELS = "a e i o u ai ea ou".split()


def make_tokenizer(size: int) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE with exactly `size` entries, trained on invented words.

    Its alphabet is that of the words: whatever is drawn at random spells ASCII, so that no server holds back half a
    code point.

    Raises:
        ValueError: there are not enough words for so many entries.
    """
    rng = random.Random(size)
    syllables = [onset + vowel for onset in ONSETS for vowel in VOWELS]
    words = {f" {''.join(rng.choice(syllables) for _ in range(rng.choice((1, 2, 3))))}" for _ in range(2 * size)}
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<pad>", "<start>", "<end>"]
    trainer = trainers.BpeTrainer(vocab_size=size, special_tokens=special, min_frequency=0, show_progress=False)
    tokenizer.train_from_iterator(sorted(words), trainer)
    if tokenizer.get_vocab_size() != size:
        raise ValueError(f"a tokenizer of {size} entries came out with {tokenizer.get_vocab_size()}")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=special[0],
        bos_token=special[1],
        eos_token=special[2],
        chat_template="{% for message in messages %}{{ message['content'] }}{% endfor %}",
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
    )


def make_model(folder: Path, vocabulary: int, width: int, layers: int, seed: int = 1) -> int:
    """Save a random Llama with its tokenizer into `folder`; returns its number of parameters.

    The heads have 64 dimensions, and the embeddings serve as output layer too.
    """
    tokenizer = make_tokenizer(vocabulary)
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=(width * 8 // 3 + 63) // 64 * 64,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    model.generation_config = GenerationConfig(eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return int(model.num_parameters())
