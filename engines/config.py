"""Configuration of an engine: one class for each backend, distinguished by the field `backend`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from waver.secret import read_secret


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())

    model: str = Field(description="a directory, a hub id, or a name at an upstream")
    chat_template: str | None = Field(
        default=None, description="a Jinja file that takes the place of the model's own chat template"
    )
    tool_parser: str | None = Field(
        default=None,
        description="how calls of tools are read: `hermes`, `hf`, or one of vLLM's; default: as the template shows",
    )
    reasoning_parser: str = Field(
        default="auto",
        description="how reasoning is told apart from the answer: `think` (think tags), `none`, or one of vLLM's; "
        "`auto`: as model and template show",
    )


GenerationConfigUse = Literal["auto", "none"]
OWN_SETTINGS = (
    "`auto`: a model's own settings (`generation_config.json`) hold where a request is silent; `none`: neutral ones"
)


class TransformersConfig(_Config):
    """A model in this process. `model` is a directory or a hub id, as transformers loads them."""

    backend: Literal["transformers"] = "transformers"
    adapter: str | None = Field(
        default=None, description="the folder of an adapter on the model: of PEFT's types, DynMoLE or Queryable LoRA"
    )
    device: str = Field(default="auto", description="`auto` (CUDA where present), `cpu`, `cuda`, `cuda:1`, …")
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        default="auto", description="precision of the weights; `auto`: as they are stored"
    )
    revision: str | None = Field(default=None, description="a branch, tag or commit of the hub")
    trust_remote_code: bool = Field(default=False, description="run Python code that comes with the model")
    threads: int | None = Field(default=None, ge=1, description="CPU threads of a pass; default: 1 for small models")
    max_sequences: int = Field(default=64, ge=1, description="sequences decoded together, and KV caches kept")
    max_model_len: int | None = Field(default=None, ge=2, description="context length, at most the model's own")
    generation_config: GenerationConfigUse = Field(default="auto", description=OWN_SETTINGS)


class VllmConfig(_Config):
    """A model under vLLM, in processes that this one starts. `args` are vLLM's own engine arguments, passed on as they
    are: `tensor_parallel_size`, `quantization`, `gpu_memory_utilization`, `enforce_eager`, …"""

    backend: Literal["vllm"] = "vllm"
    args: dict[str, Any] = Field(default={}, description="vLLM's own engine arguments")
    parameters: int | None = Field(
        default=None, ge=1, description="for cost; default: what the safetensors hold, else what the name says (`-8B`)"
    )
    heartbeat_timeout: float = Field(
        default=30.0,
        ge=2,
        description="seconds without a sign of life of one of its processes, after which they are ended and started "
        "again; a process that computes or compiles gives them",
    )
    step_timeout: float = Field(
        default=600.0, gt=0, description="seconds that one step may take, compiling included, before the same is done"
    )
    generation_config: GenerationConfigUse = Field(default="auto", description=OWN_SETTINGS)


class LoraConfig(_Config):
    """A LoRA adapter on a model under vLLM, as an engine of its own in the same processes. `model` is the adapter's
    directory or hub id, `base` the engine of the model, whose `args` say `enable_lora: true`."""

    backend: Literal["lora"] = "lora"
    base: str = Field(description="the engine of the model that the adapter is for")


Address = Annotated[str, Field(pattern=r"^https?://[^/@]+(/[^@]*)?$")]


class UpstreamConfig(_Config):
    """A model behind an OpenAI-compatible server somewhere else. `model` is its name there. Times in seconds."""

    backend: Literal["openai"] = "openai"
    base_url: Address = Field(description="up to and with `/v1`; no key in it")
    replicas: tuple[Address, ...] = Field(
        default=(), description="addresses of further servers of the same model, which share its requests"
    )
    api_key_env: str | None = Field(default=None, description="the environment variable that holds the key")
    api_key_file: str | None = Field(default=None, description="a file that holds the key, in place of a variable")
    headers: dict[str, str] = Field(default={}, description="sent with every request")
    tokenizer: str | None = Field(default=None, description="a directory or hub id; default: `model`")
    parameters: int | None = Field(
        default=None, ge=1, description="the model's parameter count, for cost; default: what its name says (`-8B`)"
    )
    context_length: int | None = Field(default=None, ge=2, description="in tokens, at most what the upstream says")
    top_logprobs: int = Field(
        default=20, ge=1, le=1000, description="log-probabilities asked for at each position, if the upstream allows"
    )
    pictures: bool = Field(
        default=False,
        description="its model takes pictures: conversations with some are sent to its `/chat/completions`",
    )
    plugin: bool | Literal["auto"] = Field(
        default="auto", description="run gates in the upstream, a vLLM with Waver's plugin; `auto`: where it has it"
    )
    max_connections: int = Field(default=64, ge=1, description="requests in the upstream at once; others wait")
    retries: int = Field(default=3, ge=0, description="further tries before the first token when nobody answers")
    connect_timeout: float = Field(default=5.0, gt=0, description="until a connection is made")
    first_token_timeout: float = Field(default=120.0, gt=0, description="until an answer's first token")
    token_timeout: float = Field(default=30.0, gt=0, description="between two tokens")
    heartbeat_interval: float = Field(
        default=10.0, ge=0, description="between two checks whether the upstream answers; 0: only after a failure"
    )
    heartbeat_timeout: float = Field(default=10.0, gt=0, description="for its answer; without two in a row it is down")
    wait: float = Field(default=60.0, ge=0, description="patience at the start with an upstream that is not up yet")
    generation_config: GenerationConfigUse = Field(
        default="auto", description="`auto`: what no request asks for is left to the upstream; `none`: neutral values"
    )
    ca_file: str | None = Field(default=None, description="certificates (PEM) to check the upstream's with")
    verify: bool = Field(default=True, description="whether to check the upstream's certificate")

    def key(self) -> str | None:
        """Return the key for the upstream; None where the configuration names none.

        Raises:
            ValueError: it names one that is not there.
        """
        key = read_secret(self.api_key_env, self.api_key_file)
        if key is None and self.api_key_env is not None:
            url = self.base_url.rstrip("/")
            raise ValueError(f"set the environment variable {self.api_key_env} to the key for {url}")
        return key


def _backend(value: Any) -> Any:
    return value.get("backend", "transformers") if isinstance(value, dict) else getattr(value, "backend", None)


ModelConfig = TransformersConfig | VllmConfig | UpstreamConfig
EngineConfig = Annotated[
    Annotated[TransformersConfig, Tag("transformers")]
    | Annotated[VllmConfig, Tag("vllm")]
    | Annotated[LoraConfig, Tag("lora")]
    | Annotated[UpstreamConfig, Tag("openai")],
    Discriminator(
        _backend,
        custom_error_type="unknown_backend",
        custom_error_message="backend should be transformers, vllm, lora or openai",
    ),
]
