"""Tasks of asking back, as data: what may be the case, and what can be asked to find out."""

from __future__ import annotations

import hashlib
from functools import cached_property
from pathlib import Path
from typing import Annotated

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from waver.resources import PACKAGE

READY = PACKAGE / "configs" / "tasks"
"""Tasks that come with Waver, one file each."""
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
Words = Annotated[str, Field(min_length=1, max_length=512)]


class AskTask(BaseModel):
    """A closed set of hypotheses and of yes-or-no questions.

    `subject` is what is looked for, such as `animal`. `affirmed` lists for each hypothesis the numbers (from 0 on) of
    the questions whose answer is yes; the others are answered no. `greeting` stands before the first question.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    subject: Words
    hypotheses: tuple[Words, ...] = Field(min_length=2, max_length=len(LETTERS))
    questions: tuple[Words, ...] = Field(min_length=1, max_length=512)
    affirmed: dict[str, tuple[int, ...]]
    greeting: str = ""

    @model_validator(mode="after")
    def _check(self) -> AskTask:
        if set(self.affirmed) != set(self.hypotheses):
            raise ValueError("`affirmed` has an entry for each hypothesis, and no others")
        if len(set(self.hypotheses)) < len(self.hypotheses) or len(set(self.questions)) < len(self.questions):
            raise ValueError("hypotheses and questions are all different")
        if any(not 0 <= place < len(self.questions) for places in self.affirmed.values() for place in places):
            raise ValueError("`affirmed` has numbers of questions, from 0 on")
        return self

    def answer(self, hypothesis: int, question: int) -> bool:
        """Look the answer to a question up."""
        return bool(self.table[question, hypothesis])

    @cached_property
    def table(self) -> NDArray[np.bool_]:
        """The answers, `[questions, hypotheses]`; True for yes."""
        out = np.zeros((len(self.questions), len(self.hypotheses)), bool)
        for place, name in enumerate(self.hypotheses):
            out[list(self.affirmed[name]), place] = True
        return out

    @property
    def digest(self) -> str:
        """Return a short hash of everything that answers depend on."""
        return hashlib.sha256(self.model_dump_json(exclude={"greeting"}).encode()).hexdigest()[:16]

    @classmethod
    def load(cls, file: Path) -> AskTask:
        """Read a YAML or JSON file.

        Raises:
            ValueError: it is not there, or not as it should be.
        """
        try:
            return cls.model_validate(yaml.safe_load(file.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            place = ".".join(map(str, first["loc"])) or "task"
            raise ValueError(f"{file}: {place}: {first['msg'].removeprefix('Value error, ')}") from error
        except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
            raise ValueError(f"the task {file} cannot be read: {str(error).splitlines()[0]}") from error


def ready_tasks() -> dict[str, Path]:
    """Return the files of the tasks that come with Waver, by name."""
    return {file.stem: file for file in sorted(READY.glob("*.yaml"))}
