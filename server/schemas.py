"""Request bodies: OpenAI's API and vLLM's extra sampling fields, plus `policy`, `trace` and `timeout`.

Null counts as absent everywhere. Unknown fields are kept in `model_extra`, so that they can be named in the answer.
"""

from __future__ import annotations

import json
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, AliasChoices, BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from waver.retrieval.memory.facts import Statement
from waver.retrieval.memory.unit import Time

Item = TypeVar("Item")
HARMLESS = frozenset({
    "user", "metadata", "store", "service_tier", "prediction",
    "safety_identifier", "prompt_cache_key", "prompt_cache_retention", "best_of",
})  # fmt: skip
"""OpenAI's fields that are not about the answer itself; `best_of` is checked where it matters."""


def _encodable(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("the string holds half of a surrogate pair, which is not valid Unicode.") from None
    return text


def _plain(value: Any) -> Any:
    """Check a value of any kind that goes on as it is: its length as JSON, and that all of its text is Unicode."""
    try:
        size = len(json.dumps(value, ensure_ascii=False).encode())
    except UnicodeEncodeError:
        raise ValueError("a string in it holds half of a surrogate pair, which is not valid Unicode.") from None
    except RecursionError:
        raise ValueError("it is nested too deeply.") from None
    if size > MOST_PLAIN:
        raise ValueError(f"it should have at most {MOST_PLAIN} bytes.")
    return value


def few(most: int) -> BeforeValidator:
    """Limit the entries of an object before they are validated: to describe a hundred thousand wrong ones takes
    seconds."""

    def check(value: Any) -> Any:
        if isinstance(value, dict) and len(value) > most:
            raise PydanticCustomError("too_long", "too many entries", {"max_length": most})
        return value

    return BeforeValidator(check)


MOST_PLAIN = 32_768
"""Bytes of JSON in a request's `policy`, and in its variables for a chat template."""
Plain = Annotated[Item, AfterValidator(_plain)]
Text = Annotated[str, AfterValidator(_encodable)]
TokenId = Annotated[int, Field(ge=0)]
Many = Annotated[list[Item], Field(fail_fast=True)]
"""A list that may be long: one wrong item is enough to refuse it, and a million would take a while to describe."""


class Body(BaseModel):
    """A JSON object from a client."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _null_is_absent(cls, data: Any) -> Any:
        return {key: value for key, value in data.items() if value is not None} if isinstance(data, dict) else data


class StreamOptions(Body):
    include_usage: bool = False
    continuous_usage_stats: bool = False


class JsonSchema(Body):
    name: Text
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool = False
    description: Text | None = None


class ResponseFormat(Body):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    structures: list[dict[str, Any]] | None = None
    triggers: list[Text] = []


class StructuredOutputs(Body):
    """vLLM's `structured_outputs`: one of the fields up to `structural_tag`."""

    json_: Any = Field(None, alias="json")
    regex: Any = None
    choice: Any = None
    grammar: Any = None
    json_object: Any = None
    structural_tag: Any = None
    whitespace_pattern: Text | None = None
    disable_any_whitespace: bool = False
    disable_additional_properties: bool = False


class Generation(Body):
    """Fields that chat and text completions share."""

    model: Text | None = None
    n: int = Field(1, ge=1)
    stream: bool = False
    stream_options: StreamOptions = StreamOptions()
    temperature: float = Field(1.0, ge=0, le=2)
    top_p: float = Field(1.0, gt=0, le=1)
    top_k: int = Field(0, ge=-1, lt=2**31)
    min_p: float = Field(0.0, ge=0, le=1)
    presence_penalty: float = Field(0.0, ge=-2, le=2)
    frequency_penalty: float = Field(0.0, ge=-2, le=2)
    repetition_penalty: float = Field(1.0, ge=0.01, le=10)
    logit_bias: Annotated[dict[str, Annotated[float, Field(ge=-100, le=100)]], few(1024)] = Field({}, max_length=1024)
    seed: int | None = Field(None, ge=-(2**63), lt=2**64)
    stop: Text | Annotated[Many[Text], Field(max_length=16)] = []
    stop_token_ids: list[TokenId] = Field([], max_length=128)
    ignore_eos: bool = False
    min_tokens: int = Field(0, ge=0)
    include_stop_str_in_output: bool = False
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: Any = None
    guided_choice: Any = None
    guided_grammar: Any = None
    guided_json_object: Any = None
    structural_tag: Any = None
    json_schema: Any = None
    regex: Any = None
    grammar: Any = None
    ebnf: Any = None
    allowed_token_ids: list[TokenId] = Field([], max_length=65_536)
    bad_words: list[Text] = Field([], max_length=128)
    truncate_prompt_tokens: int | None = Field(None, ge=-1)
    truncation_side: Literal["left", "right"] = "left"
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    cache_salt: Text | None = Field(None, max_length=256)
    policy: Plain[Any] = None
    trace: bool = False
    timeout: float | None = Field(None, gt=0)

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)


class CompletionRequest(Generation):
    """POST /v1/completions."""

    prompt: Text | Many[Text] | Many[TokenId] | Many[Many[TokenId]]
    logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: int | None = Field(None, ge=0)
    max_completion_tokens: int | None = Field(None, ge=0)
    echo: bool = False


class DetokenizeRequest(Body):
    """POST /detokenize."""

    model: Text | None = None
    tokens: Many[TokenId]


Scalar = Text | bool | int | float | None
MOST_METADATA = 16_384


class ClosedBody(Body):
    """A JSON object in which an unknown field is an error: an ignored option could show what should be hidden."""

    model_config = ConfigDict(extra="forbid")


class CollectionRequest(ClosedBody):
    """POST /v1/collections."""

    name: Text
    embedder: Text | None = None
    chunk_tokens: int = Field(128, ge=1, lt=2**31)
    chunk_overlap: int | None = Field(None, ge=0, lt=2**31)
    rerank: Text | None = None


def _of_plain_values(value: Any) -> Any:
    if isinstance(value, dict) and any(isinstance(each, dict) for each in value.values()):
        raise ValueError(
            "a value is a string, a number, true, false or null, or a list of these, any of which will do; operators "
            "such as '$gte' are not supported."
        )
    return value


class PolicyCheckRequest(ClosedBody):
    """POST /v1/policies/check: as in a request for an answer."""

    model: Text | None = None
    policy: Plain[Any] = None


class ShareRequest(ClosedBody):
    """With whom a collection is shared: the name of a key, or `*` for all."""

    key: Annotated[str, Field(pattern=r"^([A-Za-z0-9_.-]{1,64}|[*])$")]
    access: Literal["read", "write"] = "read"


class SearchRequest(ClosedBody):
    """POST /v1/collections/{name}/search."""

    query: Text = Field(min_length=1)
    top_k: int = Field(5, ge=1, le=100)
    filter: Annotated[dict[Text, Scalar | Many[Scalar]], few(64), BeforeValidator(_of_plain_values)] = Field(
        {}, max_length=64
    )
    mode: Literal["hybrid", "dense", "lexical"] = "hybrid"
    rerank: bool = True


def _of_bounded_size(metadata: dict[str, Any]) -> dict[str, Any]:
    size = sum(len(key) + len(value if isinstance(value, str) else "") for key, value in metadata.items())
    if size > MOST_METADATA:
        raise ValueError(f"metadata should have at most {MOST_METADATA} characters together.")
    return metadata


Metadata = Annotated[dict[Text, Scalar], Field(max_length=64), few(64), AfterValidator(_of_bounded_size)]
"""Metadata of a document, returned with each of its passages."""


class DocumentBody(ClosedBody):
    id: Text = Field(min_length=1, max_length=1024)
    text: Text
    title: Text = Field("", max_length=1024)
    metadata: Metadata = {}


class DocumentsRequest(ClosedBody):
    """POST /v1/collections/{name}/documents, as JSON."""

    documents: Many[DocumentBody] = Field(min_length=1, max_length=10_000)


class EmbeddingsRequest(Body):
    """POST /v1/embeddings."""

    input: Text | Many[Text] | Many[TokenId] | Many[Many[TokenId]]
    model: Text | None = None
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: int | None = Field(None, ge=1)


class TurnBody(Body):
    """A turn of a conversation to be remembered."""

    speaker: Text = Field(min_length=1, max_length=128)
    text: Text = Field(min_length=1)
    time: Annotated[Time, Field(strict=False)] | None = None
    source: Text = Field("", max_length=128)


class MemoriesRequest(Body):
    """POST /v1/memories: memories and episodes as they were exported, or the turns of a conversation."""

    memories: Annotated[Many[dict[str, Any]], Field(min_length=1, max_length=10_000)] | None = None
    turns: Annotated[Many[TurnBody], Field(min_length=1, max_length=1000)] | None = None
    conversation: Text | None = Field(None, max_length=256)
    policy: dict[str, Any] = {}
    user: Text | None = Field(None, max_length=4096)


class FactsRequest(Body):
    """POST /v1/facts."""

    facts: Annotated[Many[Statement], Field(min_length=1, max_length=10_000)]
    user: Text | None = Field(None, max_length=4096)


class MemorySearchRequest(Body):
    """POST /v1/memories/search."""

    query: Text = Field(min_length=1)
    top_k: int = Field(5, ge=1, le=100)
    kind: Literal["memories", "episodes"] = "memories"
    user: Text | None = Field(None, max_length=4096)


class TextDocument(Body):
    """A document to be reranked, in Cohere's first form."""

    text: Text


class RerankRequest(Body):
    """POST /v1/rerank, as vLLM, Jina and Cohere have it."""

    model: Text | None = None
    query: Text = Field(min_length=1)
    documents: Many[Text | TextDocument] = Field(min_length=1)
    top_n: int | None = Field(None, ge=0)
    return_documents: bool = True


class ScoreRequest(Body):
    """POST /v1/score, as vLLM has it: `queries` and `documents` are other names of the two."""

    model: Text | None = None
    text_1: Text | Many[Text] = Field(validation_alias=AliasChoices("text_1", "queries", "data_1"))
    text_2: Text | Many[Text] = Field(validation_alias=AliasChoices("text_2", "documents", "items", "data_2"))
