"""Calibrated uncertainty: from a measure's score to the probability that an answer is wrong, by isotonic regression.

A calibration is a JSON file, made by `waver calibrate inv_entropy`. It fits one model and one way of drawing evidence.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from waver.engines.fingerprint import Fingerprint
from waver.isotonic import Isotonic


class Calibration(BaseModel):
    """Rising functions by measure, and what they are valid for: a model, and settings of the policy `inv_entropy`."""

    model_config = ConfigDict(extra="forbid")

    model: str
    fingerprint: Fingerprint
    settings: dict[str, Any]
    measures: dict[str, Isotonic]
    about: dict[str, Any] = {}

    def misfit(self, measure: str, settings: dict[str, Any], model: Fingerprint) -> str | None:
        """Explain why it says nothing about a measure; None where it does."""
        if measure not in self.measures:
            return f"it has the measures {', '.join(self.measures)}, and not {measure}"
        for name, value in self.settings.items():
            if settings.get(name) != value:
                return f"it was made with {name} {value!r}, and not {settings.get(name)!r}"
        unlike = self.fingerprint.unlike(model)
        return None if unlike is None else f"it was made on {self.model}, and this is {unlike}"

    def save(self, file: Path) -> None:
        """Write the file."""
        file.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, file: Path) -> Calibration:
        """Read a file, or the file `calibration.json` in a folder.

        Raises:
            ValueError: it is not there, or damaged.
        """
        path = file / "calibration.json" if file.is_dir() else file
        try:
            return cls.model_validate_json(path.read_text(encoding="utf-8"))
        except FileNotFoundError as error:
            raise ValueError(f"there is no file {path}") from error
        except (ValidationError, UnicodeDecodeError, OSError) as error:
            said = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
            raise ValueError(f"{path} cannot be read: {said}") from error
