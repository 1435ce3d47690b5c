"""Name the differences that `waver bench replay` finds and that are wanted, each with its reason."""

from __future__ import annotations

import re
from dataclasses import dataclass

from waver.benchmarks.replay_answers import Difference
from waver.benchmarks.replay_requests import Request


@dataclass(frozen=True)
class Intended:
    """Differences at places that match `where`, in answers to requests whose name matches `name`."""

    name: str
    where: str
    reason: str

    def fits(self, request: Request, found: Difference) -> bool:
        return bool(re.search(self.name, request.name) and re.fullmatch(self.where, found.where))


BY_MODULE = "policies and gates are found by their modules, and listed by name within a stage"
DECLARED = "a policy declares what it reports and which of its fields name engines"
COMPILED = "a grammar is compiled in a process of its own, whose complaints end with a full stop"
BOUNDED = "a text is not tokenised beyond what the context could hold"
FINGERPRINT = "an answer says what it was made with"
STOPPED = "an answer names the stop string or the stop token that ended it"
OVERFLOW = "an overflow is told in the words that frameworks look for"
CARDS = "model cards have a root and a parent, and the embedders are listed"
ENDS = "a draft may end with its length only, and leaves out line breaks"
FORMS = "there are more kinds of parts, forms of answers and embedders to name"
ARTICLE = "an integer, not a integer"
LEXICAL = "lexical search takes words of any language apart"
NAMED = "fields that change nothing are named in the answer"
INTENDED: tuple[Intended, ...] = (
    Intended(r"", r"body(\[\d+\])?\.system_fingerprint", FINGERPRINT),
    Intended(r"", r"body(\[\d+\])?\.choices\[\d+\]\.stop_reason", STOPPED),
    Intended(r"^(374|384|385) refused$", r"body\.error\.message", OVERFLOW),
    Intended(r" models$", r"body(\.data\[\d+\])?\.(root|parent)|body\.data", CARDS),
    Intended(r"^059 fields$", r"body\.waver\.ignored|headers\.x-waver-ignored", NAMED),
    Intended(r" models$", r"body\.data \(order\)", BY_MODULE),
    Intended(r" models$", r"body\.data\[1\]\.schema\.properties\.gate\.enum\[\d\]", BY_MODULE),
    Intended(r" models$", r"body\.data\[1\]\.schema\.properties\.(threshold|draft_tokens)\.description", BY_MODULE),
    Intended(r" models$", r"body\.data\[\d+\]\.(engine_fields|report_keys)", DECLARED),
    Intended(r"^(334|354) refused$", r"body\.error\.message", BY_MODULE),  # names all policies, or all gates
    Intended(r"^14[68] l_rag$", r"body\.error\.message", BY_MODULE),  # with vLLM: names the gates that it can serve
    Intended(r"", r"body(\[\d+\])?(\.choices\[\d+\])?\.waver\.policy\[\d\]\.draft_end", ENDS),
    Intended(r"^(324|372|375|399) refused$", r"body\.error\.message", FORMS),
    Intended(r"^(338|345|351|355|364) refused$", r"body\.error\.message", ARTICLE),
    Intended(r"^155 l_rag$|^281 search$", r"body(\.waver\.retrieval)?\.passages\[\d\]\.score", LEXICAL),
    Intended(r"^(327|328) refused$", r"body\.error\.message", COMPILED),
    Intended(r"^384 refused$", r"body\.error\.message", BOUNDED),
)


def reason(request: Request, found: Difference) -> str | None:
    """Return why a difference is wanted; None where it is not known to be."""
    return next((each.reason for each in INTENDED if each.fits(request, found)), None)
