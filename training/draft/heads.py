"""Train multi-token prediction heads on a frozen model, with the losses of a draft model (arXiv 2606.12370).

Head i at position t predicts token t + 1 + i, from the state of head i - 1 (the model's own hidden state before the
first) and the embedding of the token at t + i, which is teacher-forced. Its target is the model's own distribution at
position t + i, without gradient. Embeddings, final norm and output layer are the model's, and stay as they are.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from waver import job
from waver.training.draft.losses import acceptance, e2e_tv, token_loss

WEIGHTS, CONFIG = "heads.safetensors", "heads.json"


class Block(nn.Module):
    """One head: joins a state and a token's embedding, `[..., hidden]` each, and refines what comes of it."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.state_norm, self.token_norm = nn.RMSNorm(hidden), nn.RMSNorm(hidden)
        self.join = nn.Linear(2 * hidden, hidden, bias=False)
        self.up, self.down = nn.Linear(hidden, 2 * hidden), nn.Linear(2 * hidden, hidden)
        nn.init.zeros_(self.join.weight)
        nn.init.zeros_(self.down.weight)
        nn.init.zeros_(self.down.bias)

    def forward(self, state: Tensor, token: Tensor) -> Tensor:
        """Return the head's state; at the start it is the one that is given."""
        joined = state + self.join(torch.cat([self.state_norm(state), self.token_norm(token)], -1))
        return cast(Tensor, joined + self.down(nn.functional.silu(self.up(joined))))


class Heads(nn.Module):
    """`gamma` heads of one model."""

    def __init__(self, hidden: int, gamma: int) -> None:
        super().__init__()
        self.hidden, self.gamma = hidden, gamma
        self.blocks = nn.ModuleList(Block(hidden) for _ in range(gamma))

    def forward(self, states: Tensor, embedded: Tensor, output: nn.Module) -> Tensor:
        """Compute every head's logits at the positions from which all heads' tokens lie in the text.

        Args:
            states, embedded: `[N, T, hidden]`, of the model's last layer behind its norm, and of its input.

        Returns:
            `[N, T - 1 - gamma, gamma, vocab]`
        """
        width = states.shape[1] - 1 - self.gamma
        state, found = states[:, :width], []
        for place, block in enumerate(self.blocks, 1):
            state = block(state, embedded[:, place : place + width])
            found.append(output(state))
        return torch.stack(found, 2)

    def save(self, folder: Path) -> None:
        """Write weights and sizes as a whole folder."""

        def write(to: Path) -> None:
            save_file({name: value.contiguous() for name, value in self.state_dict().items()}, to / WEIGHTS)
            (to / CONFIG).write_text(json.dumps({"hidden": self.hidden, "gamma": self.gamma}) + "\n", encoding="utf-8")

        job.replace_folder(folder, write)

    @classmethod
    def load(cls, folder: Path) -> Heads:
        """Read what `save` has written.

        Raises:
            OSError: it is not there.
        """
        made = cls(**json.loads((folder / CONFIG).read_text(encoding="utf-8")))
        made.load_state_dict(load_file(folder / WEIGHTS))
        return made


def read(model: PreTrainedModel, heads: Heads, inputs: dict[str, Tensor], temperature: float) -> tuple[Tensor, Tensor]:
    """Compute the log-probabilities of the model and of its heads at the positions that heads draft for, `[N, T - 1 -
    gamma, gamma, vocab]` each; those of the model have no gradient."""
    with torch.no_grad():
        said = model(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            output_hidden_states=True,
            use_cache=False,
        )
        embedded = model.get_input_embeddings()(inputs["input_ids"])
        logp = (said.logits.float() / temperature).log_softmax(-1)
        width = logp.shape[1] - 1 - heads.gamma
        targets = torch.stack([logp[:, i : i + width] for i in range(1, heads.gamma + 1)], 2)
    logits = heads(said.hidden_states[-1], embedded, model.get_output_embeddings())
    return targets, (logits.float() / temperature).log_softmax(-1)


def whole(mask: Tensor, gamma: int) -> Tensor:
    """Say from which positions all tokens that heads draft are learned, `[N, T - 1 - gamma]` bool: a chain that leaves
    the text is masked as a whole."""
    return mask.bool()[:, 2:].unfold(1, gamma, 1).all(-1)


def heads_loss(kind: str, logp: Tensor, logq: Tensor, ids: Tensor, starts: Tensor) -> Tensor:
    """Compute the mean loss over chain starts.

    Args:
        logp, logq: `[N, S, gamma, vocab]`. ids: `[N, T]`. starts: `[N, S]` bool.
    """
    gamma = logp.shape[2]
    if kind == "e2e_tv":
        found = e2e_tv(acceptance(logp.exp(), logq.exp()))
    else:
        tokens = ids[:, 2:].unfold(1, gamma, 1)
        found = token_loss(kind, logp, logq, tokens).mean(-1)
    return (found * starts).sum() / starts.sum().clamp(min=1)


class WithHeads(nn.Module):
    """A frozen model and its heads as one module, of which a trainer saves and moves the heads only."""

    frozen: PreTrainedModel

    def __init__(self, model: PreTrainedModel, heads: Heads) -> None:
        super().__init__()
        self.heads = heads
        object.__setattr__(self, "frozen", model.eval().requires_grad_(False))

    def forward(self, temperature: float, **inputs: Any) -> tuple[Tensor, Tensor]:
        """Compute what `read` does."""
        return read(self.frozen, self.heads, inputs, temperature)
