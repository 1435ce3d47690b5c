"""A small CLIP, trained on scikit-learn's digits with far more of some than of others, and folders of held-out ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import (
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    PreTrainedTokenizerFast,
)

NAMES = "zero one two three four five six seven eight nine".split()
SIDE = 8
MEAN, STD = 0.5, 0.5


def tokenizer() -> PreTrainedTokenizerFast:
    """Words as tokens: those of `a photo of a …`."""
    words = ["[PAD]", "[BOS]", "[EOS]", "[UNK]", "a", "photo", "of", ".", *NAMES]
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    core.pre_tokenizer = Whitespace()
    core.post_processor = TemplateProcessing(single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 1), ("[EOS]", 2)])
    named = {"pad_token": "[PAD]", "bos_token": "[BOS]", "eos_token": "[EOS]", "unk_token": "[UNK]"}
    return PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=16, **named)


def pixels(images: np.ndarray) -> torch.Tensor:
    """Digits `[n, 8, 8]` of 0 to 16 as `[n, 3, side, side]`, as the processor makes them."""
    made = torch.tensor(images / 16, dtype=torch.float32)[:, None]
    return ((made - MEAN) / STD).expand(-1, 3, -1, -1)


def split(seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels to train on, the count of label k as 1 / (k + 1), and to classify, of all labels alike."""
    images, labels = load_digits(return_X_y=True)
    images = images.reshape(-1, 8, 8)
    rng = np.random.default_rng(seed)
    train, held_out = [], []
    for label in range(10):
        own = rng.permutation(np.flatnonzero(labels == label))
        held_out += own[:24].tolist()
        train += own[24 : 24 + max(150 // (label + 1), 12)].tolist()
    return images[train], labels[train], images[held_out], labels[held_out]


def train(folder: Path, steps: int = 300, seed: int = 0) -> None:
    """Train the pair of encoders, and write it as transformers would."""
    images, labels, _, _ = split()
    words = tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        shape = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1, "num_attention_heads": 2}
        ids = {"vocab_size": len(words), "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
        text = CLIPTextConfig(**shape, **ids, max_position_embeddings=16, projection_dim=24)
        vision = CLIPVisionConfig(**shape, image_size=SIDE, patch_size=SIDE, projection_dim=24)
        model = CLIPModel(CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24))
        model.text_model.embeddings.token_embedding.weight.data.normal_()  # so that labels differ from the start
        model.vision_model.embeddings.patch_embedding.weight.data.mul_(10)
        optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
        prompts = words([f"a photo of a {name}." for name in NAMES], padding=True, return_tensors="pt")
        made, targets = pixels(images), torch.tensor(labels)
        for _ in range(steps):
            rows = torch.randint(len(targets), (128,))
            top, left = torch.randint(0, 3, (2,)).tolist()
            side = SIDE - max(top, left)
            cut = made[rows, :, top : top + side, left : left + side]
            moved = torch.nn.functional.interpolate(cut, size=(SIDE, SIDE), mode="bicubic")
            logits = model(
                input_ids=prompts["input_ids"], attention_mask=prompts["attention_mask"], pixel_values=moved
            ).logits_per_image
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(logits, targets[rows]).backward()
            optimizer.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)
    size = {"height": SIDE, "width": SIDE}
    CLIPImageProcessorPil(
        size=size, crop_size=size, image_mean=[MEAN] * 3, image_std=[STD] * 3, do_center_crop=False
    ).save_pretrained(folder)


def write_images(folder: Path, each: int | None = None) -> None:
    """Write the held-out digits as PNG files of 32 pixels, in folders that are named like their labels."""
    _, _, images, labels = split()
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        if each is not None and number % 24 >= each:
            continue
        file = folder / NAMES[label] / f"{number:03}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image / 16 * 255).astype(np.uint8)).resize((32, 32), Image.Resampling.BICUBIC).save(file)
