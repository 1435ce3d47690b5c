"""Write facts into a model's MLPs, batch after batch, and take them out again (RLSEdit, arXiv 2601.15686)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import PreTrainedModel

from waver.engines.tokens import TokenText
from waver.training.editing import least_squares, state
from waver.training.editing.facts import Fact
from waver.training.editing.least_squares import Step
from waver.training.editing.options import EditRun
from waver.training.editing.sites import Site
from waver.training.editing.state import Change, EditState
from waver.training.editing.targets import Prompts, Search, keys, openings, outputs, prompts, values

LITTLE = 1e-6
"""The penalty where none is given, as a part of the anchors' mean: the system stays regular, and nothing else."""
NEARLY_NOTHING = 1e-4
"""Ridge of the editor `least_squares`, which has no other term; smaller ones are lost in float32."""


class Editor:
    """A model, the layers that are edited, and what is known of the edits so far.

    The model is in float32, so that its own weights are the exact ones.
    """

    def __init__(
        self, model: PreTrainedModel, tokens: TokenText, where: Sequence[Site], run: EditRun, folder: Path
    ) -> None:
        self.model, self.tokens, self.where, self.run, self.folder = model, tokens, where, run, folder
        model.requires_grad_(False).eval()
        self.original = {site.layer: site.read() for site in where}
        self.state = EditState({}, {})
        self._before = openings(model, tokens, run.openings, run.opening_length, run.seed)

    def begin(self, moments: dict[int, torch.Tensor]) -> None:
        """Start from the original weights, with the second moments of keys that are to be held still."""
        self.state = EditState(moments, self._starts(moments))

    def resume(self) -> None:
        """Go on with the edits in the folder."""
        self.state, weights = state.read(self.folder, self.model.device)
        for site in self.where:
            site.write(weights[site.layer])

    def _starts(self, moments: dict[int, torch.Tensor]) -> dict[int, torch.Tensor]:
        """Return C_0 of every layer. `alphaedit` has a projector in its place, `least_squares` nothing but a ridge."""
        run, found = self.run, {}
        for layer, moment in moments.items():
            anchors = run.anchor * run.mass * moment
            mean = float(anchors.diagonal().mean())
            penalty = run.penalty if run.penalty is not None else LITTLE * mean
            if run.editor == "alphaedit":
                found[layer] = least_squares.nullspace(moment)
            elif run.editor == "least_squares":
                found[layer] = torch.eye(len(moment), device=moment.device) / NEARLY_NOTHING
            else:
                found[layer] = least_squares.start(penalty, anchors)
        return found

    @property
    def remembers(self) -> bool:
        """Tell whether C is carried from batch to batch; `memit` and `least_squares` start each with C_0."""
        return self.run.editor in ("rlsedit", "alphaedit")

    def batches(self, facts: Sequence[Fact]) -> Iterator[list[Fact]]:
        """Cut the facts that are not in the weights yet into batches, in none of which two contradict each other."""
        batch: dict[tuple[str, str | None], Fact] = {}
        for fact in facts:
            known = self.state.live.get(fact.same_as)
            if known is not None and known[0] == fact and fact.same_as not in batch:
                continue
            if len(batch) == self.run.batch or fact.same_as in batch:
                yield list(batch.values())
                batch = {}
            batch[fact.same_as] = fact
        if batch:
            yield list(batch.values())

    def apply(self, facts: Sequence[Fact]) -> None:
        """Write one batch. Facts that it contradicts are taken out before, where C remembers them."""
        number = self.state.batches + 1
        if self.remembers and (old := [fact for fact in facts if fact.same_as in self.state.live]):
            self._take_out(old, number)
        last = self.where[-1]
        groups = [facts[at : at + self.run.at_once] for at in range(0, len(facts), self.run.at_once)]
        asked = [prompts(group, self.tokens, self._before) for group in groups]
        wanted = torch.cat([self.wanted(each) for each in asked])
        kept: dict[str, dict[int, torch.Tensor]] = {"keys": {}, "values": {}}
        steps: dict[int, Step] = {}
        for number_left, site in zip(range(len(self.where), 0, -1), self.where, strict=True):
            key = torch.cat([keys(self.model, site, each) for each in asked])
            now = torch.cat([outputs(self.model, last, each) for each in asked])
            residual = (wanted - now) / number_left
            weight = site.read()
            kept["keys"][site.layer], kept["values"][site.layer] = key, key @ weight + residual
            step = least_squares.step(self.state.inverses[site.layer], key, residual)
            steps[site.layer] = step
            site.write(step.weight(weight))
            if self.remembers:
                self.state.inverses[site.layer] = step.inverse(self.state.inverses[site.layer])
        self.state.add(Change(number, 1, tuple(facts), kept["keys"], kept["values"], steps))

    def wanted(self, asked: Prompts) -> torch.Tensor:
        """Search for the states that the last edited layer should have at the subjects, `[facts, hidden]`."""
        run = self.run
        return values(self.model, self.where[-1], asked, Search(run.steps, run.rate, run.clamp, run.kl, run.decay))

    def _take_out(self, facts: Sequence[Fact], number: int) -> None:
        """Take facts out that others of the same prompt replace: least squares would settle on the mean of both."""
        found = [self.state.live[fact.same_as] for fact in facts]
        pairs = [
            state.read_pairs(self.folder, self.state.fresh, batch, place, self.model.device)
            for _, batch, place in found
        ]
        steps, all_keys, all_values = {}, {}, {}
        for site in self.where:
            key = torch.cat([each[site.layer][0] for each in pairs])
            value = torch.cat([each[site.layer][1] for each in pairs])
            weight = site.read()
            step = least_squares.removal(self.state.inverses[site.layer], key, value - key @ weight)
            site.write(step.weight(weight))
            self.state.inverses[site.layer] = step.inverse(self.state.inverses[site.layer])
            steps[site.layer], all_keys[site.layer], all_values[site.layer] = step, key, value
        self.state.add(Change(number, -1, tuple(fact for fact, _, _ in found), all_keys, all_values, steps))

    def undo(self, batches: int) -> None:
        """Take the last batches back: everything before them is replayed from the original weights.

        Raises:
            ValueError: there are not so many.
        """
        if batches > self.state.batches:
            raise ValueError(f"{batches} batches cannot be undone: there are {self.state.batches}")
        self.state.forget_after(self.state.batches - batches)
        weights, inverses = dict(self.original), self._starts(self.state.moments)
        written = {(change.batch, change.sign): change.steps for change in self.state.fresh}
        for batch, sign in self.state.changes():
            steps = written.get((batch, sign)) or state.read_steps(self.folder, batch, sign, self.model.device)
            for layer, step in steps.items():
                weights[layer] = step.weight(weights[layer])
                if self.remembers:
                    inverses[layer] = step.inverse(inverses[layer])
        self.state.inverses = inverses
        for site in self.where:
            site.write(weights[site.layer])

    @contextmanager
    def unedited(self) -> Iterator[None]:
        """Give the model its original weights inside."""
        edited = {site.layer: site.read() for site in self.where}
        for site in self.where:
            site.write(self.original[site.layer])
        try:
            yield
        finally:
            for site in self.where:
                site.write(edited[site.layer])

    def drift(self) -> float:
        """Compute how much the edited MLPs put out otherwise on general text: the squared change over the square,
        summed over the layers."""
        change, size = 0.0, 0.0
        for site in self.where:
            moment, before = self.state.moments[site.layer], self.original[site.layer]
            moved = site.read() - before
            change += float(((moment @ moved) * moved).sum())
            size += float(((moment @ before) * before).sum())
        return change / size
