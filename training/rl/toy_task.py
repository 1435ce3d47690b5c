"""Define a task that trains in seconds and shows what RL does to entropy: two free choices among eight tokens.

Six prompts, eight positions, twelve tokens. At the two forks (positions 2 and 5) the pretrained policy is uniform; at
each of the other six, the followers, it writes the one token that belongs to prompt and position, but for some noise.
An answer is right if all followers are, and if the fork tokens sum to the prompt's number modulo 4: a quarter of all
pairs does, so that the policy can be right in 36 ways for each prompt. Plain GRPO finds the right answers and forgets
all ways but one or two.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from torch import nn

from waver.entropy import shannon_entropy
from waver.training.rl.method import Draw

PROMPTS, POSITIONS, VOCABULARY, CLASSES = 6, 8, 12, 4
FORKS = (2, 5)
FOLLOWERS = tuple(t for t in range(POSITIONS) if t not in FORKS)
NOTHING = VOCABULARY
"""The token that stands where nothing has been written yet."""
RIGHT = torch.randint(VOCABULARY, (PROMPTS, POSITIONS), generator=torch.Generator().manual_seed(0))
"""`[prompts, positions]`: the right token at each follower position."""


@dataclass(frozen=True)
class Task:
    """The rule for right answers, and how the policy was pretrained.

    Args:
        rule: `sum`: both forks together decide; `second`: the second alone.
        noise: share of follower tokens that are wrong in pretraining.
        hint: how often the second fork is of the right class in pretraining; a quarter is chance (rule `second`).
        pretrain_steps: Adam steps at 3e-3 with 128 rows each.
    """

    rule: Literal["sum", "second"] = "sum"
    noise: float = 0.02
    hint: float = 1 / CLASSES
    pretrain_steps: int = 250

    def followers_right(self, tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Return `[B]` bool for `[B, 8]` tokens and `[B]` prompts."""
        followers = list(FOLLOWERS)
        return (tokens[:, followers] == RIGHT[prompts][:, followers]).all(1)

    def answer(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return `[B]`: the class that the forks give."""
        first, second = tokens[:, FORKS[0]], tokens[:, FORKS[1]]
        return (first + second if self.rule == "sum" else second) % CLASSES

    def correct(self, tokens: torch.Tensor, prompts: torch.Tensor) -> torch.Tensor:
        """Return `[B]` bool."""
        return self.followers_right(tokens, prompts) & (self.answer(tokens) == prompts % CLASSES)

    def examples(self, prompts: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Return `[B, 8]` rows to pretrain on."""
        tokens = RIGHT[prompts]
        shape = tokens.shape
        noisy = torch.rand(shape, generator=generator) < self.noise
        wrong = (tokens + torch.randint(1, VOCABULARY, shape, generator=generator)) % VOCABULARY
        tokens = torch.where(noisy, wrong, tokens)
        tokens[:, FORKS[0]] = torch.randint(VOCABULARY, prompts.shape, generator=generator)
        hit = torch.rand(prompts.shape, generator=generator) < self.hint
        off = torch.where(hit, 0, torch.randint(1, CLASSES, prompts.shape, generator=generator))
        lift = torch.randint(VOCABULARY // CLASSES, prompts.shape, generator=generator) * CLASSES
        tokens[:, FORKS[1]] = (prompts + off) % CLASSES + lift
        return tokens


class Policy(nn.Module):
    """Two tanh layers of 64 over embeddings of the prompt, the position, the previous token and the first fork.

    The embeddings, 16 wide each, start small (standard deviation 0.1): from the usual 1 the policy learns faster than
    the figures that this task is known by.
    """

    def __init__(self) -> None:
        super().__init__()
        self.embeddings = nn.ModuleList(nn.Embedding(n, 16) for n in (PROMPTS, POSITIONS, *[VOCABULARY + 1] * 2))
        for embedding in self.embeddings.parameters():
            nn.init.normal_(embedding, std=0.1)
        self.layers = nn.Sequential(
            *(nn.Linear(64, 64), nn.Tanh()), *(nn.Linear(64, 64), nn.Tanh()), nn.Linear(64, VOCABULARY)
        )

    def forward(self, prompts: torch.Tensor, tokens: torch.Tensor) -> torch.Tensor:
        """Return `[B]` prompts and `[B, 8]` tokens -> `[B, 8, 12]` logits; position t sees tokens before t only."""
        rows = len(prompts)
        position = torch.arange(POSITIONS).expand(rows, -1)
        previous = torch.cat([torch.full((rows, 1), NOTHING), tokens[:, :-1]], 1)
        first = torch.where(position > FORKS[0], tokens[:, FORKS[0]].unsqueeze(1), NOTHING)
        seen = (prompts.unsqueeze(1).expand(-1, POSITIONS), position, previous, first)
        features = [embed(x) for embed, x in zip(self.embeddings, seen, strict=True)]
        logits: torch.Tensor = self.layers(torch.cat(features, -1))
        return logits

    @torch.no_grad()
    def sample(self, prompts: torch.Tensor, generator: torch.Generator, draw: Draw) -> torch.Tensor:
        """Return `[B, 8]` tokens."""
        tokens = torch.full((len(prompts), POSITIONS), NOTHING)
        for t in range(POSITIONS):
            logits = self(prompts, tokens)[:, t]
            logits = (draw.logits(logits) if draw.logits else logits) / draw.temperature
            tokens[:, t] = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(1)
        return tokens


@lru_cache(maxsize=64)
def _pretrained(task: Task, seed: int) -> dict[str, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        policy = Policy()
    generator = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.Adam(policy.parameters(), lr=3e-3)
    for _ in range(task.pretrain_steps):
        prompts = torch.randint(PROMPTS, (128,), generator=generator)
        tokens = task.examples(prompts, generator)
        loss = nn.functional.cross_entropy(policy(prompts, tokens).flatten(0, 1), tokens.flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return policy.state_dict()


def pretrained(task: Task, seed: int) -> Policy:
    """Return the policy that training starts from; the same for the same task and seed."""
    policy = Policy()
    policy.load_state_dict(_pretrained(task, seed))
    return policy


@dataclass(frozen=True)
class Evaluation:
    """A policy, judged by 64 samples for each prompt. Entropies are means over tokens, in nats."""

    accuracy: float
    entropy: float
    fork_entropy: float
    follower_entropy: float
    pairs: float
    """Distinct right pairs of fork tokens, mean over prompts."""


@torch.no_grad()
def evaluate(policy: Policy, task: Task, seed: int, samples: int = 64) -> Evaluation:
    """Draw and judge; the same draws for the same seed."""
    prompts = torch.arange(PROMPTS).repeat_interleave(samples)
    tokens = policy.sample(prompts, torch.Generator().manual_seed(seed), Draw())
    correct = task.correct(tokens, prompts)
    entropy = shannon_entropy(policy(prompts, tokens)).mean(0)
    right = torch.stack([prompts, tokens[:, FORKS[0]], tokens[:, FORKS[1]]], 1)[correct]
    return Evaluation(
        accuracy=float(correct.float().mean()),
        entropy=float(entropy.mean()),
        fork_entropy=float(entropy[list(FORKS)].mean()),
        follower_entropy=float(entropy[list(FOLLOWERS)].mean()),
        pairs=len(right.unique(dim=0)) / PROMPTS,
    )
