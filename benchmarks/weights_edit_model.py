"""Measure edits of a language model: every editor writes the same facts, batch after batch; what is left is counted.

The facts are of the bundled world, in plain English, about towns that no other model knows. The same facts of other
towns, other facts of these, and what the model makes of programs should stay as they are.
"""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from safetensors.torch import load_file, save_file

from waver import job
from waver.benchmarks import report
from waver.engines.tokens import TokenText
from waver.training import checkpoints
from waver.training.editing import sites
from waver.training.editing.editor import Editor
from waver.training.editing.facts import Fact, as_fact
from waver.training.editing.measure import likeliest, measure
from waver.training.editing.options import EDITORS, EditRun
from waver.training.editing.targets import Prompts
from waver.training.pair.world import RELATIONS, random_town, unknown_names
from waver.training.texts import Text, mean_loss, read_texts

WORK = Path("data/bench/weights-edit")
PARAPHRASES = {
    "mayor": "{}'s mayor is called",
    "river": "The river that flows through {} is the",
    "craft": "The craft that {} is known for is",
}
SAME_TOWN = "The bird of {} is the"
MEASURES = ("efficacy", "generalisation", "locality", "same_town", "same_tokens", "drift")

app = report.command()


def facts(count: int, seed: int) -> list[Fact]:
    """Draw facts about towns that nobody knows, three of each; neighbours are the same of towns that are not edited."""
    rng = random.Random(f"edits:{seed}")
    found = []
    names = rng.sample(unknown_names(), -(-count // len(PARAPHRASES)))
    others = sorted(set(unknown_names()) - set(names))
    for number, name in enumerate(names):
        town = random_town(name, rng)
        for relation, paraphrase in PARAPHRASES.items():
            begun = RELATIONS[relation].statement.split(" {value}")[0].format(town=name)
            row = {"prompt": begun, "subject": name, "target": town.facts[relation]}
            near = begun.replace(name, others[number * len(others) // len(names)])
            found.append(as_fact(row | {"paraphrases": [paraphrase], "neighbours": [near]}))
    rng.shuffle(found)
    return found[:count]


class Keeping(Editor):
    """An editor that keeps the values it has searched for in a folder. All editors write towards the same values: what
    is compared is how they write."""

    def __init__(self, *given: Any, values: Path) -> None:
        super().__init__(*given)
        self.values, self.number = values, 0

    def wanted(self, asked: Prompts) -> torch.Tensor:
        self.number += 1
        file = self.values / f"{self.number:05d}.safetensors"
        if not file.exists():
            found = {"wanted": super().wanted(asked).contiguous()}
            job.replace_file(file, lambda path: save_file(found, path))
        return load_file(file)["wanted"]


def same_tokens(editor: Editor, texts: Sequence[Text]) -> float:
    """Return at which share of the tokens of texts the likeliest next one is that of the unedited model."""
    ids = [text.ids for text in texts]
    after = likeliest(editor.model, ids, 4)
    with editor.unedited():
        before = likeliest(editor.model, ids, 4)
    pairs = [(a, b) for one, other in zip(after, before, strict=True) for a, b in zip(one, other, strict=True)]
    return sum(a == b for a, b in pairs) / len(pairs)


def same_town(editor: Editor, written: Sequence[Fact]) -> float:
    """Return at which share of the edited towns another fact, that is not edited, is begun as before."""
    ids = [editor.tokens.encode(SAME_TOWN.format(name)) for name in sorted({fact.subject for fact in written})]
    after = likeliest(editor.model, ids, 8)
    with editor.unedited():
        before = likeliest(editor.model, ids, 8)
    return sum(a[-1] == b[-1] for a, b in zip(after, before, strict=True)) / len(ids)


def written_in(editor: Editor, wanted: Sequence[Fact], seconds: list[float]) -> Iterator[int]:
    """Write the facts; yields how many are written after each batch."""
    done = 0
    for batch in editor.batches(wanted):
        began = time.perf_counter()
        editor.apply(batch)
        seconds.append(time.perf_counter() - began)
        editor.state.fresh.clear()
        done += len(batch)
        yield done


def case(
    editor: Keeping, moments: Mapping[int, torch.Tensor], new: Sequence[Fact], kept: Sequence[Text]
) -> dict[str, Any]:
    """Write all facts by one editor and measure."""
    editor.begin(dict(moments))
    seconds: list[float] = []
    with report.progress() as bar:
        task = bar.add_task(editor.run.editor, total=len(new))
        for done in written_in(editor, new, seconds):
            bar.update(task, completed=done)
    found: dict[str, Any] = dict(measure(editor, new))
    found |= {"same_town": same_town(editor, new), "same_tokens": same_tokens(editor, kept)}
    with editor.unedited():
        found["loss_before"] = mean_loss(editor.model, kept, 4)
    return found | {"loss": mean_loss(editor.model, kept, 4), "first_seconds": seconds[0], "last_seconds": seconds[-1]}


def state_bytes(editor: Editor, batch: int) -> dict[str, int]:
    """Return what is kept beside the weights, in bytes: once for all edits, and for each batch."""
    width = {site.layer: site.read().shape for site in editor.where}
    fixed = sum(4 * (2 * rows * rows + rows * columns) for rows, columns in width.values())
    return {"fixed": fixed, "batch": sum(8 * batch * (rows + columns) for rows, columns in width.values())}


def page(found: Mapping[str, Any]) -> list[str]:
    settings, state = found["settings"], found["state"]
    first = next(iter(found["rows"].values()))
    cells = [
        (f"`{name}`", *(f"{row[each]:.3f}" for each in (*MEASURES, "loss")), f"{row['last_seconds']:.1f}")
        for name, row in found["rows"].items()
    ]
    return [
        "# Edits of a language model",
        f"`{Path(settings['model']).name}`, {first['facts']} new facts about towns, in batches of "
        f"{settings['batch']}, layers {found['layers'][0]} to {found['layers'][-1]}, one seed. Every editor writes "
        f"towards the same values (`--steps {settings['steps']}`, {settings['openings']} opening). `memit`: C is begun "
        "anew with each batch.",
        "`efficacy`: the share that greedy decoding says; `generalisation`: the same for paraphrases; `locality`: the "
        "same facts of towns that are not edited, begun as before; `same town`: other facts of edited towns; "
        "`same tokens`: of "
        f"{settings['kept']} programs of HumanEval, the share of tokens behind which the likeliest next one is as "
        "before; `drift`: squared change of what the edited MLPs put out on general text; `loss`: on those programs, "
        f"in nats ({first['loss_before']:.3f} before).",
        report.table(("", *(each.replace("_", " ") for each in (*MEASURES, "loss")), "last batch, s"), cells),
        f"Beside the weights lie {state['fixed'] / 1e6:.0f} MB for all edits together (moments, C and float32 weights "
        f"of the edited layers), and {state['batch'] / 1e6:.2f} MB for each batch (its keys, values and step, for "
        "undoing).",
    ]


@app.command()
def main(
    context: typer.Context,
    model: Annotated[str, typer.Option(help="A causal language model: a folder, or a name.")],
    general: Annotated[Path, typer.Option(help="JSONL of general text, which edits hold still.")],
    programs: Annotated[Path, typer.Option(help="JSONL of texts on which nothing should change.")],
    count: Annotated[int, typer.Option(min=1, help="Facts.")] = 200,
    written: Annotated[
        int | None, typer.Option(min=1, help="Write only the first of them.", show_default="all")
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Facts written together.")] = 10,
    mass: Annotated[float, typer.Option(min=0, help="Keys of general text to hold still.")] = 15000.0,
    samples: Annotated[int, typer.Option(min=1, help="Tokens of general text.")] = 10_000,
    steps: Annotated[int, typer.Option(min=1, help="Steps of the search for a value.")] = 8,
    openings: Annotated[int, typer.Option(min=0, help="Openings before the prompt.")] = 1,
    kept: Annotated[int, typer.Option(min=1, help="Programs that are measured.")] = 20,
    editors: Annotated[str, typer.Option(help="Which, with commas.")] = ",".join(EDITORS),
    seed: report.Seed = 7,
    work: Annotated[Path, typer.Option(help="Folder of what is done already; a stopped run goes on.")] = WORK,
    out: report.Out = report.RESULTS,
) -> None:
    """Edit one model by every editor; writes weights_edit.json and .md."""
    report.need_extra()
    conditions = report.conditions("weights-edit-model", dict(context.params))
    torch.set_num_threads(1)
    settings = {"count": count, "batch": batch, "mass": mass, "samples": samples, "steps": steps, "openings": openings}
    job.claim(work, settings | {"model": model, "kept": kept, "seed": seed})
    (work / "values").mkdir(exist_ok=True)
    loaded, tokens = checkpoints.load(model)
    where = sites.chosen_sites(loaded, None, None)
    moments = _moments(work / "moments.safetensors", loaded, where, tokens, general, samples)
    left, new = read_texts(programs, tokens, 192)[:kept], facts(count, seed)[:written]
    done = {(line["editor"], line["facts"]): line["values"] for line in job.read_lines(work / "cases.jsonl")}
    rows: dict[str, Any] = {}
    for name in editors.split(","):
        run = EditRun(
            editor=name, batch=batch, mass=mass, steps=steps, rate=1.0, openings=openings, at_once=batch, seed=seed
        )
        editor = Keeping(loaded, tokens, where, run, work, values=work / "values")
        key = name, len(new)
        if key not in done:
            with _put_back(editor):
                done[key] = case(editor, moments, new, left)
            job.append_line(work / "cases.jsonl", {"editor": name, "facts": len(new), "values": done[key]})
        rows[name] = done[key]
        found = {"rows": rows, "layers": [site.layer for site in where], "state": state_bytes(editor, batch)}
        report.write(out, "weights_edit", conditions | found, page(conditions | found))


@contextmanager
def _put_back(editor: Editor) -> Iterator[None]:
    """Give the model its original weights afterwards, for the next editor."""
    try:
        yield
    finally:
        for site in editor.where:
            site.write(editor.original[site.layer])


def _moments(
    file: Path, model: Any, where: Sequence[sites.Site], tokens: TokenText, general: Path, samples: int
) -> dict[int, torch.Tensor]:
    if not file.exists():
        texts = [text.ids for text in read_texts(general, tokens, 256)]
        found = {str(layer): value for layer, value in sites.moments(model, where, texts, samples).items()}
        job.replace_file(file, lambda path: save_file(found, path))
    return {int(layer): value for layer, value in load_file(file).items()}


if __name__ == "__main__":
    app()
