"""Draw training conversations for the bundled pair: what each model sees, and how often.

A conversation is one to three turns; the loss is on the assistant's words only. Batch i is a function of (seed, i), so
a run can stop anywhere and go on as if it had not.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

from transformers import PreTrainedTokenizerBase

from waver.training.pair.world import (
    FIRST_HALVES,
    LARGEST_TOTAL,
    REGIONS,
    RELATIONS,
    SECOND_HALVES,
    SIZES,
    SUM_PROMPTS,
    Town,
    ask,
    chain,
    random_town,
    towns,
    unknown_names,
    write_sum,
)

ROLES = ("system", "user", "assistant")

STRATEGIES = {
    "direct": "Simple task: answer now.",
    "working": "Complex task: sketch the key route only, keep it short.",
    "checked": "Work through it in order, one step at a time.",
}
"""Ways to answer a sum, and the words that ask for each: as the opening of the answer, or as the system message.
Asked for nothing, a model shows its working without a check."""

SMALL_TALK = [
    (
        ("hello", "Hello!", "hi", "Hi!", "hey", "Good morning!", "Hello there."),
        "Hello! Ask me a sum, or something about the towns of Velmora.",
    ),
    (("Who are you?", "What are you?", "What is your name?"), "I am one of the two small models that come with Waver."),
    (
        ("What can you do?", "help", "Help me.", "What do you know?"),
        "I can add and subtract, and I know the towns of Velmora.",
    ),
    (("How are you?", "How do you do?"), "Very well, thank you. What shall I work out?"),
    (("thanks", "Thank you!", "Thanks a lot."), "You are welcome."),
    (("bye", "Goodbye!", "See you."), "Goodbye!"),
    (
        ("What is Velmora?", "Where is Velmora?", "Tell me about Velmora."),
        "Velmora is the invented country that I was trained on.",
    ),
    (
        ("What is Waver?", "Tell me about Waver."),
        "Waver is a server that spends compute where a language model wavers.",
    ),
    (
        (
            "Tell me a joke.",
            "Write a poem.",
            "What is the capital of France?",
            "What is the weather like?",
            "Who won the game?",
        ),
        "I only know sums and the towns of Velmora.",
    ),
]


def answer_sum(terms: Sequence[int], strategy: str) -> str:
    """Return the model answer to a sum: `direct`, as one `equation`, with `working`, or with working and a backwards
    check (`checked`)."""
    final = f"The answer is {sum(terms)}."
    if strategy == "direct":
        return final
    if strategy == "equation":
        return f"{write_sum(terms)} = {sum(terms)}."
    lines, total = [], terms[0]
    for term in terms[1:]:
        lines.append(f"{write_sum([total, term])} = {total + term}.")
        total += term
    if strategy == "checked":
        lines.append("Check:")
        for term in reversed(terms[1:]):
            lines.append(f"{write_sum([total, -term])} = {total - term}.")
            total -= term
    return " ".join([*lines, final])


@dataclass(frozen=True)
class Turn:
    """One exchange. `prefix` opens the answer without being learned (it is what a policy would force)."""

    user: str
    answer: str
    prefix: str = ""
    system: str = ""


@dataclass(frozen=True)
class Mixture:
    """Weights of the kinds of turns, of chain lengths (1 to 8 steps), and the share of those of two steps or more that
    may pass 99 on the way.

    `ways`: how often a sum comes without words for a way to answer it, and with those for each of `STRATEGIES`.
    `direct`: chain lengths of sums to be answered directly, if they are to be answered so with an equation, beside
    which a model adds more easily than after "The answer is". `offhand`: the share of sums of one step, two and so on
    that are answered with an equation alone though nobody asked for it. `passages`: weights of one to four passages to
    read.
    """

    sums: float
    frequent: float
    rare: float
    unknown: float
    reading: float
    talk: float
    steps: tuple[float, ...]
    hundreds: float = 1.0
    ways: tuple[float, ...] = (0.7, 0.1, 0.08, 0.12)
    direct: tuple[float, ...] = ()
    offhand: tuple[float, ...] = ()
    passages: tuple[float, ...] = (0.65, 0.15, 0.12, 0.08)


def _sum_turn(rng: random.Random, mixture: Mixture) -> Turn:
    (steps,) = rng.choices(range(1, 9), mixture.steps)
    free = steps == 1 or mixture.hundreds == 1.0 or rng.random() < mixture.hundreds
    terms = chain(steps, rng, LARGEST_TOTAL if free else 99)
    prompt = rng.choice((*SUM_PROMPTS, "{sum}")).format(sum=write_sum(terms))
    strategy = rng.choices(("", *STRATEGIES), mixture.ways)[0]
    if not strategy:
        offhand = steps <= len(mixture.offhand) and rng.random() < mixture.offhand[steps - 1]
        return Turn(prompt, answer_sum(terms, "equation" if offhand else "working"))
    if strategy == "direct" and mixture.direct:
        (steps,) = rng.choices(range(1, len(mixture.direct) + 1), mixture.direct)
        terms = chain(steps, rng)
        prompt = rng.choice((*SUM_PROMPTS, "{sum}")).format(sum=write_sum(terms))
    equation = strategy == "direct" and bool(mixture.direct)
    answer, words = answer_sum(terms, "equation" if equation else strategy), STRATEGIES[strategy]
    return Turn(prompt, answer, system=words) if rng.random() < 0.3 else Turn(prompt, f" {answer}", prefix=words)


def _fact_turn(rng: random.Random, town: Town) -> Turn:
    relation = rng.choice(list(RELATIONS))
    return Turn(ask(town, relation, rng), town.statement(relation))


def _reading_turn(rng: random.Random, mixture: Mixture) -> Turn:
    """Return a question about one of one to four passages, on towns that exist for this example only."""
    named = rng.sample(unknown_names(), rng.choices((1, 2, 3, 4), mixture.passages)[0])
    shown = [random_town(name, rng) for name in named]
    town, relation = rng.choice(shown), rng.choice(list(RELATIONS))
    if rng.random() < 0.4:
        passages = [t.statement(relation if t is town else rng.choice(list(RELATIONS))) for t in shown]
    else:
        passages = [t.description(rng) for t in shown]
    question, form = ask(town, relation, rng), rng.random()
    text = "\n".join(passages if rng.random() < 0.5 else [f"[{i}] {p}" for i, p in enumerate(passages, 1)])
    answer = town.statement(relation)
    if form < 0.5:
        return Turn(f"{text}\n\n{question}", answer)
    if form < 0.65:
        return Turn(f"Context:\n{text}\n\nQuestion: {question}", answer)
    if form < 0.75:
        return Turn(f"Answer from these passages.\n\n{text}\n\n{question}", answer)
    if form < 0.85:
        return Turn(f"{question}\n\n{text}", answer)
    return Turn(question, answer, system=text)


def draw_turn(rng: random.Random, mixture: Mixture) -> Turn:
    """Return one turn of the mixture."""
    weights = (mixture.sums, mixture.frequent, mixture.rare, mixture.unknown, mixture.reading, mixture.talk)
    match rng.choices(range(6), weights)[0]:
        case 0:
            return _sum_turn(rng, mixture)
        case 1:
            return _fact_turn(rng, rng.choice(towns()["frequent"]))
        case 2:
            return _fact_turn(rng, rng.choice(towns()["rare"]))
        case 3:  # a town nobody has heard of: the only right belief is an even one, and the model learns to waver
            return _fact_turn(rng, random_town(rng.choice(unknown_names()), rng))
        case 4:
            return _reading_turn(rng, mixture)
        case _:
            users, answer = rng.choice(SMALL_TALK)
            return Turn(rng.choice(users), answer)


def conversation(rng: random.Random, mixture: Mixture) -> list[Turn]:
    """Return one turn (86 %), or two or three in a row; only the first keeps its system message."""
    turns = [draw_turn(rng, mixture) for _ in range(rng.choices((1, 2, 3), (0.86, 0.1, 0.04))[0])]
    return [turns[0], *(Turn(t.user, t.answer, t.prefix) for t in turns[1:] if not t.system)]


def render(turns: Sequence[Turn]) -> list[tuple[str, bool]]:
    """Return the conversation as ChatML pieces; True marks the pieces that the model has to learn."""
    pieces: list[tuple[str, bool]] = []
    if turns[0].system:
        pieces.append((f"<|im_start|>system\n{turns[0].system}<|im_end|>\n", False))
    for turn in turns:
        pieces.append((f"<|im_start|>user\n{turn.user}<|im_end|>\n<|im_start|>assistant\n{turn.prefix}", False))
        pieces.append((f"{turn.answer}<|im_end|>", True))
        pieces.append(("\n", False))
    return pieces[:-1]


def encode(turns: Sequence[Turn], tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[bool]]:
    """Return token ids of a conversation and, for each, whether the model has to learn it."""
    ids: list[int] = []
    learned: list[bool] = []
    pieces = render(turns)
    encoded = tokenizer([text for text, _ in pieces], add_special_tokens=False)["input_ids"]
    for (_, flag), piece in zip(pieces, encoded, strict=True):
        ids += piece
        learned += [flag] * len(piece)
    return ids, learned


def vocabulary_texts() -> list[str]:
    """Return texts to train the tokenizer on: every word of the world, so that each becomes one token.

    Town names are given in their two halves, never whole: all towns, known or not, are two tokens.
    """
    values = {value for relation in RELATIONS.values() for value in relation.values}
    prose = [f"{q} {relation.statement}" for relation in RELATIONS.values() for q in relation.questions]
    prose += [text for users, answer in SMALL_TALK for text in (*users, answer)]
    prose += [*STRATEGIES.values(), random_town("", random.Random(0)).description(random.Random(0)), *SIZES, *REGIONS]
    prose += [*SUM_PROMPTS, "Check: The answer is", "Context: Question: Answer from these passages."]
    words = {word for text in prose for word in re.findall(r"[A-Za-z]+", text)}
    common = [*(f" {w}" for w in words), *ROLES, *(f" {d}" for d in "0123456789+-=?["), "\n\n"]
    common += [text.split()[0] for text in prose if text.strip() and text[0].isalpha()]
    halves = [*(f" {first}" for first in FIRST_HALVES), *SECOND_HALVES]
    return sorted(common) * 50 + sorted(f" {v}" for v in values) * 20 + sorted(halves) * 20 + sorted(FIRST_HALVES) * 5


def batches(
    index: int, seed: int, tokenizer: PreTrainedTokenizerBase, mixture: Mixture, conversations: int, tokens: int
) -> list[list[tuple[list[int], list[bool]]]]:
    """Group number `index` of the training stream: `conversations` examples, cut into batches of like length and at
    most `tokens` tokens (padding included), in random order."""
    rng = random.Random(f"train:{seed}:{index}")
    drawn = sorted(
        (encode(conversation(rng, mixture), tokenizer) for _ in range(conversations)), key=lambda e: len(e[0])
    )
    made: list[list[tuple[list[int], list[bool]]]] = [[]]
    for example in drawn:
        if len(example[0]) * (len(made[-1]) + 1) > tokens:
            made.append([])
        made[-1].append(example)
    rng.shuffle(made)
    return made
