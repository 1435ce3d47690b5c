"""The sections `server` and `keys` of the configuration. Imports little: `waver serve --help` answers at once."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class KeysConfig(BaseModel):
    """Configuration of the database of keys, and of what the keys of `api_keys_env` may do."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    database: str | None = None
    """`postgresql://USER:PASSWORD@HOST/NAME` for several servers, or `sqlite:///FILE`; none: a file in `state`."""
    plain: Literal["inference", "admin"] = "inference"
    """Role of the keys of `api_keys_env`: `admin` may do everything, also with each other's collections."""
    refresh: float = Field(1.0, gt=0)
    """Seconds after which a change of a key by another process is seen at the latest."""
    metric_names: int = Field(100, ge=0)
    """Keys that have metrics of their own; those of all others are added up as `other`."""


class ServerConfig(BaseModel):
    """Address and limits of the server. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    host: str = Field("127.0.0.1", description="Address to listen on.")
    port: int = Field(8000, ge=0, le=65535, description="Port, 0 for a free one.")
    log_format: Literal["auto", "text", "json"] = Field(
        "auto", description="Log lines for people (text), or of JSON; auto: text on a terminal."
    )
    root_path: str = Field("", pattern=r"^(/[A-Za-z0-9._~-]+)*$", description="Path that a proxy serves it under.")
    api_keys_env: str = "WAVER_API_KEYS"
    """Variable with the API keys, `KEY` or `NAME:KEY`, separated by commas."""
    api_keys_file: str | None = None
    """File with the API keys, one to a line or separated by commas, in place of the variable."""
    allow_no_keys: bool = Field(False, description="Serve other machines without asking for keys.")
    cors_origins: list[str] = []
    """Web origins that may call from a browser, `*` for all; pages from this machine always may."""
    allowed_hosts: list[str] = []
    """Names that requests may have as `Host` where there are no keys, besides loopback names and the bound address:
    `*.example.org` for all below one, `*` for any. With keys every name is served."""
    strict: bool = False
    """Refuse requests with fields that are not known, instead of naming these in the answer."""
    max_concurrency: int = Field(64, ge=1, description="Requests decoded at a time.")
    max_queue: int = Field(256, ge=0, description="Requests that may wait.")
    max_n: int = Field(32, ge=1)
    """Largest `n` of a request."""
    max_choices: int = Field(512, ge=1)
    """Most choices of one request: prompts times `n`."""
    default_max_tokens: int = Field(4096, ge=1)
    """Most tokens of an answer whose request names no limit."""
    max_answer_entries: int = Field(2**20, ge=1024)
    """Most tokens and log-probabilities that an answer may list: choices, times tokens with the prompt's if it is
    echoed, times what is listed for each."""
    max_extra_sequences: int = Field(256, ge=1)
    """Most sequences that the policies of a request may draw besides its choices."""
    max_extra_tokens: int = Field(2**18, ge=1)
    """Most tokens that policies which choose, search or measure may draw besides a request's answers; where they are
    spent, the best answer so far is given."""
    max_text_characters: int = Field(2**18, ge=1024)
    """Of a text to tokenise or to search for; of a prompt as many as its engine's context can hold."""
    max_stored_responses: int = Field(1000, ge=0)
    """Responses of `/v1/responses` that are kept in memory, so that a conversation can go on from them."""
    max_stored_bytes: int = Field(64 * 2**20, ge=0)
    """Bytes of these together."""
    text_threads: int = Field(2, ge=1)
    """Texts that are tokenised at a time."""
    schema_seconds: float = Field(2.0, gt=0)
    """Time that a JSON schema may take to compile, in a process of its own."""
    schema_memory: int = Field(2**30, ge=128 * 2**20)
    """Address space of that process."""
    max_body_bytes: int = Field(4 * 2**20, ge=1024)
    """Of a request that brings no documents."""
    max_total_body_bytes: int = Field(256 * 2**20, ge=1024)
    """Of all bodies in memory; others wait for up to `body_timeout` before they are read."""
    max_body_values: int = Field(2**18, ge=1024)
    """Numbers, strings, lists and objects in a JSON body."""
    max_picture_body_bytes: int = Field(32 * 2**20, ge=1024)
    """Of a conversation, where a model takes pictures, in place of a smaller `max_body_bytes`."""
    max_images: int = Field(16, ge=0)
    """Pictures in a request."""
    max_image_bytes: int = Field(20 * 2**20, ge=1024)
    """Of a picture's file."""
    max_image_pixels: int = Field(2**25, ge=1024)
    """Pixels of a request's pictures together; known before they are decoded."""
    max_total_image_bytes: int = Field(2**30, ge=2**20)
    """Of all decoded pictures in memory, three for each pixel; requests beyond them are refused."""
    max_header_bytes: int = Field(32 * 2**10, ge=1024)
    """Of a request's headers."""
    header_timeout: float = Field(10.0, gt=0)
    """Longest time until a connection's next request has said what it wants, from its first byte on, and until a new
    connection sends one."""
    body_timeout: float = Field(30.0, gt=0)
    """Time that a body may take to arrive, and to wait for room in memory."""
    idle_timeout: float = Field(30.0, gt=0)
    """Time for which a connection is kept open between two requests."""
    max_connections: int = Field(4096, ge=1)
    """Most connections, and never more than three quarters of the files that the process may have open."""
    timeout: float = Field(600.0, gt=0, description="Seconds a request may take, waiting included.")
    write_timeout: float = Field(30.0, gt=0)
    """Time after which a client that reads nothing is cut off."""
    keepalive: float = Field(15.0, gt=0)
    """A silent stream sends a comment line this often."""
    usage_file: str | None = None
    """File to which a line of JSON is added for each request: its key, tokens and cost, for a billing job."""
    log_texts: bool = False
    """Log prompts and answers, too. They are what people have written: only where it is allowed."""
    shutdown_grace: int = Field(30, ge=0)
    """Time that running requests are given when the server is told to stop."""
