"""End the commands that ask a server alike: a sentence about what went wrong, and the exit status."""

from __future__ import annotations

from collections.abc import Callable

import openai
from rich.console import Console

from waver.clients.chat import explain
from waver.clients.questions import Refused


def status_of(work: Callable[[], int], base_url: str, notes: Console) -> int:
    """Do some work, and say on `notes` why it cannot be done.

    Returns:
        The exit status: that of the work, 1 if it cannot be done, 130 after ctrl-C.
    """
    try:
        return work()
    except KeyboardInterrupt:
        return 130
    except openai.OpenAIError as error:
        said = explain(error, base_url)
    except (Refused, OSError) as error:
        said = str(error)
    notes.print(said, markup=False, highlight=False, soft_wrap=True)
    return 1
