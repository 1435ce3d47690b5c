"""Ask a server for several runs of a question, with their entropy features, through the policy `entropy_judger`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from waver.clients.client import AsyncWaver, has_report, report
from waver.clients.questions import Refused


@dataclass(frozen=True)
class RunSource:
    """A server, the model to ask there, and how runs are drawn: fields of the policy, and the most tokens of a text."""

    client: AsyncWaver
    model: str
    policy: dict[str, Any]
    max_tokens: int

    async def ask(self, question: str, seed: int) -> dict[str, Any]:
        """Return the `selection` of the answer's report: all runs, the convention and the models' fingerprints.

        Raises:
            openai.OpenAIError: the server refuses. Refused: it does not tell what it drew.
        """
        response = await self.client.chat.completions.create(
            model=self.model,
            messages=[{"role": "user", "content": question}],
            seed=seed,
            max_tokens=self.max_tokens,
            extra_body={"policy": [{"name": "entropy_judger", "select": "vote", "features": True, **self.policy}]},
        )
        told = (report(response).model_extra or {}).get("selection") if has_report(response) else None
        if not isinstance(told, dict) or "convention" not in told:
            raise Refused("The server's answers do not tell the features of runs: is it a Waver of this release?")
        if told.get("ended"):
            raise Refused(f"The server ended a question's runs early ({told['ended']}): raise max_extra_tokens there.")
        return told
