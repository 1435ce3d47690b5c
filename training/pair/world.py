"""Draw the small world that the bundled models speak of: sums, and facts about the invented country of Velmora.

Everything is drawn from explicit seeds, so anyone can draw a fresh test set: `draw("arithmetic", seed=7, n=500)`.
The facts themselves are fixed (`FACTS` seed); a draw's seed chooses which are asked, and how. Training uses its own
stream (`waver.training.pair.data`), whose seeds `draw` cannot name. Three kinds of town differ in how a model can know
them:

- frequent towns are asked about often in training, rare towns seldom (and hardly ever when the small model trains);
- tail towns never appear in training: their facts stand only in `documents()`.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

from waver.answers import names_only, number

COUNTRY = "Velmora"
FACTS = "velmora-1"

FIRST_HALVES = """Tal Bren Cor Dun El Fen Gal Har Ist Jor Kel Lor Mar Nor Os Pel Quil Ras Sel Tor Ul Ver Wen Yar Zan
Ald Bal Cal Dor Er Fal Gren Hol In Kar Lin Mon Nal Or Per Ril San Tem Ur Var Wil Yel Zor Ash Bel
Cad Dar Esk Far Gol Hem Jal Kor Lan Mel""".split()
SECOND_HALVES = """vek dan mir ton wick ford by ham ster gate burg holm ness field mouth dale stead worth combe fell
garth haven hurst mere moor port ridge shaw thorpe vale wold brook cross den end firth glen hill
keep land march nook oak pass quay reach spring tarn view watch yard bank crest down edge fort
grove hold isle knoll""".split()

RIVERS = """Sorn Aven Brill Calder Dremm Elva Fyle Garn Hesk Irth Jarl Kenna Lume Morra Nidd Ollen Parr Quen Rothe Stour
Teme Usk Vorn Wend Yarr Zell Arle Bourne Clyne Dove Esker Frome Gade Hull Itch Kyle Leven Mease Nene Otter""".split()
MAYORS = """Orla Bertil Cora Dagny Edmund Freya Gustav Hilda Ivo Jonas Katrin Ludo Marta Nils Odette Petra Quentin Rufus
Sigrid Tomas Ursula Viktor Wanda Xenia Yorick Zelda Agnes Boris Clara Dieter Elsa Felix Greta Hugo Irma Jasper
Klaus Lena Moritz Nadia""".split()
CRAFTS = """weaving pottery baking brewing carving dyeing fishing gilding hunting mining printing quilting
roofing sewing tanning welding bookbinding candles carpets cheese clocks cutlery drums flutes
glass hats honey ink kites lace lanterns leather paper perfume ropes saddles salt silk soap
violins""".split()
BIRDS = """heron swan falcon robin raven stork eagle owl crane wren finch dove gull hawk ibis jay kestrel lark magpie
nightjar osprey partridge quail rook swift tern thrush vulture warbler pelican cuckoo curlew egret grebe
harrier kite lapwing merlin plover snipe""".split()


@dataclass(frozen=True)
class Relation:
    """One thing that can be asked about a town. `statement` is both the fact in a document and the model's answer."""

    values: tuple[str, ...]
    statement: str
    questions: tuple[str, ...]


RELATIONS = {
    "river": Relation(
        tuple(RIVERS),
        "The river of {town} is the {value}.",
        ("Which river flows through {town}?", "What is the river of {town}?", "Name the river of {town}."),
    ),
    "mayor": Relation(
        tuple(MAYORS),
        "The mayor of {town} is {value}.",
        ("Who is the mayor of {town}?", "What is the mayor of {town} called?", "Name the mayor of {town}."),
    ),
    "craft": Relation(
        tuple(CRAFTS),
        "The craft of {town} is {value}.",
        ("Which craft is {town} known for?", "What is the craft of {town}?", "Name the craft of {town}."),
    ),
    "bird": Relation(
        tuple(BIRDS),
        "The bird of {town} is the {value}.",
        ("Which bird is the emblem of {town}?", "What is the bird of {town}?", "Name the bird of {town}."),
    ),
}
SIZES = ("town", "village", "market town", "hamlet")
REGIONS = ("north", "south", "east", "west", "hills", "lowlands")


@dataclass(frozen=True)
class Item:
    """A question and its answer. `prompt` is a user message; `passage` (tail facts) is a text that holds the answer."""

    task: str
    prompt: str
    answer: str
    passage: str | None = None

    @property
    def open_book(self) -> str:
        """The prompt with the right passage in front of it."""
        return self.prompt if self.passage is None else f"{self.passage}\n\n{self.prompt}"


@dataclass(frozen=True)
class Document:
    """One document of the corpus, about one town."""

    id: str
    text: str


@dataclass(frozen=True)
class Town:
    """A town and its four facts, by relation."""

    name: str
    facts: dict[str, str]

    def statement(self, relation: str) -> str:
        return RELATIONS[relation].statement.format(town=self.name, value=self.facts[relation])

    def description(self, rng: random.Random) -> str:
        """Return a paragraph with all facts in random order."""
        opening = f"{self.name} is a {rng.choice(SIZES)} in the {rng.choice(REGIONS)} of {COUNTRY}."
        return " ".join([opening, *(self.statement(r) for r in rng.sample(list(RELATIONS), len(RELATIONS)))])


def random_town(name: str, rng: random.Random) -> Town:
    """Return a town whose facts are drawn at random."""
    return Town(name, {key: rng.choice(relation.values) for key, relation in RELATIONS.items()})


@cache
def towns() -> dict[str, tuple[Town, ...]]:
    """Return the fixed towns by kind: 20 `frequent`, 75 `rare`, 250 `tail`."""
    rng = random.Random(FACTS)
    names = [first + second for first in FIRST_HALVES for second in SECOND_HALVES]
    rng.shuffle(names)
    made = iter([random_town(name, rng) for name in names[: 20 + 75 + 250]])
    return {kind: tuple(next(made) for _ in range(n)) for kind, n in (("frequent", 20), ("rare", 75), ("tail", 250))}


@cache
def unknown_names() -> tuple[str, ...]:
    """Return town names that belong to no fixed town; training uses them for towns that exist for one example only."""
    taken = {town.name for kind in towns().values() for town in kind}
    return tuple(n for first in FIRST_HALVES for second in SECOND_HALVES if (n := first + second) not in taken)


@cache
def documents() -> list[Document]:
    """Return the corpus with every tail fact: one paragraph for each tail town."""
    rng = random.Random(f"{FACTS}:documents")
    return [Document(id=f"town-{town.name.lower()}", text=town.description(rng)) for town in towns()["tail"]]


SUM_PROMPTS = ("What is {sum}?", "Compute {sum}.", "{sum} = ?", "How much is {sum}?")
LARGEST_TOTAL = 199


def chain(steps: int, rng: random.Random, largest: int = LARGEST_TOTAL) -> list[int]:
    """Return signed two-digit terms of a sum with `steps` operations; every running total lies in 0..`largest`."""
    terms = [rng.randint(10, 99)]
    while len(terms) <= steps:
        term, total = rng.randint(10, 99), sum(terms)
        if allowed := [s * term for s in (1, -1) if 0 <= total + s * term <= largest]:
            terms.append(rng.choice(allowed))
    return terms


def write_sum(terms: Sequence[int]) -> str:
    """Return `[34, 25, -17]` -> `34 + 25 - 17`."""
    return str(terms[0]) + "".join(f" {'+' if t >= 0 else '-'} {abs(t)}" for t in terms[1:])


def steps_of(question: str) -> int:
    """Count the steps that the sum in a question takes."""
    return len(re.findall(r" [+-] \d", question))


def _arithmetic(rng: random.Random, steps: int | tuple[int, int] = (1, 8)) -> Item:
    low, high = (steps, steps) if isinstance(steps, int) else steps
    if not 1 <= low <= high:
        raise ValueError(f"steps must be a positive number or a pair (low, high), not {steps!r}")
    terms = chain(rng.randint(low, high), rng)
    return Item("arithmetic", rng.choice(SUM_PROMPTS).format(sum=write_sum(terms)), str(sum(terms)))


def ask(town: Town, relation: str, rng: random.Random) -> str:
    """Return a question about one fact of a town, in one of its wordings."""
    return rng.choice(RELATIONS[relation].questions).format(town=town.name)


def _facts(kind: str) -> Callable[[random.Random], Item]:
    def one(rng: random.Random) -> Item:
        index = rng.randrange(len(towns()[kind]))
        town, relation = towns()[kind][index], rng.choice(list(RELATIONS))
        passage = documents()[index].text if kind == "tail" else None
        return Item(f"{kind}_facts", ask(town, relation, rng), town.facts[relation], passage)

    return one


TASKS: dict[str, Callable[..., Item]] = {
    "arithmetic": _arithmetic,
    "frequent_facts": _facts("frequent"),
    "rare_facts": _facts("rare"),
    "tail_facts": _facts("tail"),
}


def draw(task: str, seed: int, n: int, **options: int | tuple[int, int]) -> list[Item]:
    """Draw `n` items of a task; the same arguments give the same items.

    Args:
        task: `arithmetic` (option `steps`: a number, or a pair `(low, high)`; default `(1, 8)`), `frequent_facts`,
            `rare_facts` or `tail_facts` (items carry `.passage`).

    Raises:
        ValueError: unknown task or bad steps. TypeError: an option that the task does not have.
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    rng = random.Random(f"draw:{task}:{seed}")
    return [TASKS[task](rng, **options) for _ in range(n)]


def score_text(task: str, prompt: str, answer: str, text: str) -> bool:
    """Tell whether `text` answers `prompt` rightly.

    Arithmetic: the last number in the text is the answer. Facts: the text names the answer, and no other value
    of the relation that the prompt asks for (so listing several does not count).
    """
    if task not in TASKS:
        raise ValueError(f"unknown task {task!r}; there are {', '.join(TASKS)}")
    if task == "arithmetic":
        return number(text, answer)
    rivals = next(relation.values for relation in RELATIONS.values() if answer in relation.values)
    return names_only(text, answer, rivals)
