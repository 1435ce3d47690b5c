"""The section `retrieval` of the configuration: storage, embedders, and limits on documents."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from waver.retrieval.formats import READERS

DEFAULT_EMBEDDER = "all-MiniLM-L6-v2"


class RetrievalConfig(BaseModel):
    """Configuration of retrieval. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    embedder: str = Field(
        default=DEFAULT_EMBEDDER,
        description="a sentence-transformers model: directory or hub id; loaded at the start if it is named here or if "
        "there are collections",
    )
    embedders: tuple[str, ...] = Field(default=(), description="others that a new collection may name")
    rerankers: tuple[str, ...] = Field(
        default=(), description="cross-encoders that a collection and /v1/rerank may name; the first is the default"
    )
    store: Literal["faiss", "qdrant"] = Field(default="faiss", description="a folder, or a Qdrant server")
    path: Path = Field(default=Path("data/collections"), description="folder of the collections")
    url: str | None = Field(default=None, pattern=r"^(https?://|:memory:$)", description="address of Qdrant")
    api_key_env: str = Field(default="QDRANT_API_KEY", description="variable with Qdrant's key")
    api_key_file: str | None = Field(default=None, description="file with Qdrant's key, in place of the variable")
    index: Literal["auto", "flat", "hnsw", "ivf_pq"] = Field(default="auto", description="FAISS index; by size if auto")
    device: str = Field(default="cpu", description="where the embedder runs: `cpu`, `cuda`, …")
    dense_weight: float = Field(
        default=0.4,
        ge=0.0,
        le=1.0,
        description="of the scores by meaning in a hybrid search, those by words having the rest; "
        "`waver bench search --tune` compares weights",
    )
    max_collections: int = Field(default=1000, ge=1, description="that may be made")
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="in which the embedder multiplies matrices; bfloat16 is quicker on processors with it",
    )
    max_body_bytes: int = Field(default=64 * 2**20, ge=1024, description="of a request that brings documents")
    max_file_bytes: int = Field(default=64 * 2**20, ge=1024, description="of one document as it comes")
    max_kind_bytes: dict[str, int] = Field(
        default={}, description="of one document by its kind: `{pdf: 20000000}`; `max_file_bytes` bounds them all"
    )
    max_text_bytes: int = Field(default=16 * 2**20, ge=1024, description="of the text found in one document")
    parse_seconds: float = Field(default=30.0, gt=0, description="that one document may take to parse")
    parse_memory: int = Field(default=2**30, ge=128 * 2**20, description="address space of the process that parses")
    lock_seconds: float = Field(default=30.0, ge=0, description="how long a writer waits for another one")

    @field_validator("max_kind_bytes")
    @classmethod
    def _check_kinds(cls, limits: dict[str, int]) -> dict[str, int]:
        if unknown := sorted(set(limits) - set(READERS)):
            raise ValueError(f"there is no kind of document '{unknown[0]}'; there are: {', '.join(READERS)}.")
        if any(limit < 1 for limit in limits.values()):
            raise ValueError("a kind's most bytes are 1 or more.")
        return limits

    @model_validator(mode="after")
    def _check_store(self) -> RetrievalConfig:
        if (self.store == "qdrant") != (self.url is not None):
            raise ValueError("the store qdrant has a url, and no other store has one.")
        return self
