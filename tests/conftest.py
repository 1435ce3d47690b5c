"""A pair of tiny random models that speak the bundled tokenizer, and real servers on real sockets.

Random weights are on purpose: they draw every byte there is, so broken code points and odd tokens come by themselves.
"""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import sysconfig
import threading
import time
import venv
from collections.abc import Callable, Coroutine, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, TypeVar

import httpx
import openai
import pytest
import structlog
import torch
import yaml
from tokenizers import Tokenizer
from tokenizers.models import WordPiece
from tokenizers.normalizers import BertNormalizer
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from tests.engines.driving import copy_tokenizer
from tests.engines.vllm_serving import Served, vllm_serving
from tests.pictures import save_seeing
from waver.retrieval.embedder import Embedder
from waver.server.config import Config, load_config
from waver.server.logs import configure_logs
from waver.server.run import Server, freeze_garbage_collector, make_server
from waver.server.runtime import Runtime

ROOT = Path(__file__).resolve().parent.parent
CONTEXT = 1024
THEIRS = "engines entropy policies retrieval server clients training benchmarks models configs".split()
"""Folders that a project of somebody else may have, too."""
T = TypeVar("T")
ENGINES = """abort decoding families footprint gates grammar grouped loading measures packed pictures reading sampling
schema slots tokens transforms tuners upstream upstream_trouble visual_pruning"""
SERVER = """adaptive_temperature addresses adte assembly checking closed_schema completions config_schema conversation
entropy_judger entropy_prune facts fields forwarded_pictures generation_config learned_route memories messages origin
page_answers plugins protocol_tools reasoning rerank responses safeharbor setup structured tools truncation
uncertainty"""
BESIDE = (
    *(f"tests/{folder}/" for folder in "cli clients entropy policies retrieval training".split()),
    *(
        f"tests/benchmarks/test_{name}.py"
        for name in "asking bes choosing client_matrix consistency memories rl scripts search".split()
    ),
    *(f"tests/engines/test_{name}.py" for name in ENGINES.split()),
    *(f"tests/server/test_{name}.py" for name in SERVER.split()),
    *(f"tests/test_{name}.py" for name in "installs readme".split()),
)
"""Tests that may run beside others: they do not look at the clock, nor at the machine's other processes."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--part", choices=("beside", "rest"),
        help="run the tests that may run beside others, or those others: `make test` runs both side by side",
    )  # fmt: skip


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    part = config.getoption("--part")
    if part is None:
        return
    others = [item for item in items if goes_beside(item) != (part == "beside")]
    config.hook.pytest_deselected(items=others)
    items[:] = [item for item in items if goes_beside(item) == (part == "beside")]


def goes_beside(item: pytest.Item) -> bool:
    """Return whether a test may run beside others: it starts no vLLM, for two of which there may be no memory."""
    return item.nodeid.startswith(BESIDE) and item.get_closest_marker("starts_vllm") is None


@dataclass(frozen=True)
class Running:
    """A server that answers at `url`."""

    url: str
    server: Server
    runtime: Runtime

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine where the server's engines live: on its event loop."""
        return asyncio.run_coroutine_threadsafe(work, self.server.loop).result(timeout=600)

    def until_ready(self, seconds: float = 60) -> None:
        until(lambda: self.runtime.ready or self.runtime.failure is not None, "the engines", seconds)
        assert self.runtime.ready, self.runtime.failure

    def openai(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=self.v1, **{"api_key": "none", "max_retries": 0, **options})

    def http(self, **options: Any) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60, **options)

    @property
    def active(self) -> int:
        """Sequences in all engines."""
        return sum(engine.active for engine in self.runtime.engines.values())

    def idle(self, within: float) -> bool:
        """Wait until everything is free again; return False after so many seconds."""
        deadline = time.monotonic() + within
        while time.monotonic() < deadline:
            if self.active == self.runtime.admission.running == self.runtime.admission.waiting == 0:
                return True
            time.sleep(0.005)
        return False


@pytest.fixture(scope="session", autouse=True)
def _frozen() -> Iterator[None]:
    """Exclude the libraries from garbage collection, as `waver serve` does: a full one would take most of a second, and
    all streams of the servers in this process would stand still."""
    freeze_garbage_collector()
    yield
    gc.unfreeze()


@pytest.fixture(scope="session", autouse=True)
def _servers_log(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Have the servers in this process log to a file: what a command prints beside them is the command's alone."""
    with (tmp_path_factory.mktemp("logs") / "servers.log").open("w") as file:
        configure_logs(form="json")
        structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(file))
        yield
        structlog.reset_defaults()


@pytest.fixture(autouse=True)
def _log_restored() -> Iterator[None]:
    """Take back what a test did to the log."""
    before = structlog.get_config()
    yield
    structlog.configure(**before)


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet", "--no-deps"]
    subprocess.run([*command, "--no-build-isolation", "--wheel-dir", str(folder), str(ROOT)], check=True)
    (made,) = folder.glob("waver_llm-*.whl")
    return made


@pytest.fixture(scope="session")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of a fresh environment: the wheel is installed there, its requirements are those of the tests.

    The tests' own environment lends its packages by a path that comes last, so that the checkout stays out of sight.
    """
    folder = tmp_path_factory.mktemp("installed")
    venv.create(folder / "env", with_pip=False)
    paths = sysconfig.get_paths("venv", vars={"base": str(folder / "env"), "platbase": str(folder / "env")})
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    install = [*pip, "install", "--no-deps", "--no-index", "--target", paths["purelib"], str(wheel)]
    subprocess.run(install, check=True)
    (Path(paths["purelib"]) / "lent.pth").write_text(sysconfig.get_path("purelib") + "\n")
    # The tests' environment may know the checkout by another name, whose record would bring the plugin a second time.
    for name in {each.dist.name for each in entry_points(group="vllm.logits_processors") if each.dist}:
        if name != "waver-llm":
            info = Path(paths["purelib"]) / f"{name}-0.dist-info"
            info.mkdir()
            (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 0\n")
    return Path(paths["scripts"]) / "python"


@pytest.fixture(scope="session")
def their_project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of somebody else, with empty packages of our names in it."""
    folder = tmp_path_factory.mktemp("project")
    for name in THEIRS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").touch()
    return folder


@pytest.fixture(scope="session")
def embedder() -> Embedder:
    """The real embedder, loaded once."""
    found = Embedder("all-MiniLM-L6-v2")
    assert found.dimension == 384
    return found


@pytest.fixture(scope="session")
def cross_encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny cross-encoder with random weights, whose tokens are letters and digits."""
    letters = "abcdefghijklmnopqrstuvwxyz0123456789?.,"
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *letters, *(f"##{letter}" for letter in letters)]
    core = Tokenizer(WordPiece({token: i for i, token in enumerate(vocabulary)}, unk_token="[UNK]"))
    core.normalizer, core.pre_tokenizer = BertNormalizer(), BertPreTokenizer()
    core.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=64, **names)
    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
    config = BertConfig(
        vocab_size=len(vocabulary), max_position_embeddings=64, num_labels=1, initializer_range=0.5, **shape
    )
    folder = tmp_path_factory.mktemp("cross-encoder")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        BertForSequenceClassification(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Directories of two random Llama models, `small` and `large`, as transformers would save them."""
    out = {}
    for seed, (name, width, layers) in enumerate((("small", 32, 2), ("large", 64, 3))):
        directory = tmp_path_factory.mktemp(name)
        copy_tokenizer(directory)
        tokenizer = AutoTokenizer.from_pretrained(directory)
        torch.manual_seed(seed)
        config = LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=width,
            intermediate_size=2 * width,
            num_hidden_layers=layers,
            num_attention_heads=2,
            num_key_value_heads=2,
            max_position_embeddings=CONTEXT,
            initializer_range=0.3,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
        LlamaForCausalLM(config).save_pretrained(directory)
        out[name] = directory
    return out


@pytest.fixture(scope="session")
def tiny_config(tiny_pair: dict[str, Path]) -> dict[str, Any]:
    """A configuration of the tiny pair, as YAML would give it."""
    return {
        "engines": {name: {"backend": "transformers", "model": str(path)} for name, path in tiny_pair.items()},
        "presets": {
            "frugal": [
                {
                    "name": "ead",
                    "small": "small",
                    "large": "large",
                    "threshold": 3.0,
                    "window": 1,
                    "min_tokens": 1,
                    "threshold_down": None,
                }
            ],
            "coin": [{"name": "random_switch", "small": "small", "large": "large", "rate": 0.5}],
        },
        "default_preset": "frugal",
        "server": {"port": 0},
    }


@pytest.fixture(scope="session")
def start(tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Running]]:
    """Start a server of the tiny pair; options go into the `server` section. `wait=False`: do not wait until ready."""
    running: list[tuple[Server, threading.Thread]] = []

    def begin(wait: bool = True, config: Mapping[str, Any] | None = None, **options: Any) -> Running:
        content = {**tiny_config, **(config or {})}
        content["server"] = {**content["server"], **options}
        file = tmp_path_factory.mktemp("config") / "waver.yaml"
        file.write_text(yaml.safe_dump(content, sort_keys=False))
        return launch(load_config(file), wait)

    def launch(config: Config, wait: bool) -> Running:
        server = make_server(config)
        thread = threading.Thread(target=server.run, daemon=True)
        thread.start()
        running.append((server, thread))
        until(lambda: bool(server.addresses), "the server to listen")
        port = server.addresses[0][1]
        runtime = server.config.app.state.runtime  # type: ignore[union-attr]
        out = Running(f"http://127.0.0.1:{port}", server, runtime)
        if wait:
            out.until_ready()
        return out

    yield begin
    for server, _ in running:
        server.should_exit = True
    for server, thread in running:
        thread.join(timeout=20)
        server.force_exit = True


@pytest.fixture(scope="session")
def running(start: Callable[..., Running]) -> Running:
    """The server that most tests share."""
    return start()


@pytest.fixture(scope="session")
def seeing(
    start: Callable[..., Running], tiny_config: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Running:
    """A server of two vision-language models that differ in their random weights, and of one of texts."""
    models = {f"see{i}": {"model": str(save_seeing(tmp_path_factory.mktemp("see"), i))} for i in (1, 2)}
    engines = {**models, "small": tiny_config["engines"]["small"]}
    presets = {"quick": [{"name": "entropy_prune", "keep": 0.5}]}
    return start(config={"engines": engines, "presets": presets, "default_preset": None})


@pytest.fixture(scope="session")
def vllm_config(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The bundled pair under vLLM, on one page with the transformers engines of the same models."""
    args = {"dtype": "float32", "enforce_eager": True, "max_num_seqs": 32, "disable_log_stats": False}
    models = {name: str(ROOT / "models" / name) for name in ("small", "large")}
    embedded = {f"embedded-{name}": {"model": model, "dtype": "float32"} for name, model in models.items()}
    return {
        "engines": {
            name: {"backend": "vllm", "model": model, "args": args, "heartbeat_timeout": 8}
            for name, model in models.items()
        }
        | embedded,
        "presets": {"frugal": [{"name": "ead", "threshold": 0.05, "monitor": "small", "window": 1, "min_tokens": 1}]},
        "retrieval": {"path": str(tmp_path_factory.mktemp("data") / "collections")},
    }


@pytest.fixture(scope="session")
def vllm_running(start: Callable[..., Running], vllm_config: dict[str, Any]) -> Running:
    """A server of the bundled pair under vLLM, with the same models in transformers beside (`embedded-…`)."""
    running = start(wait=False, config=vllm_config)
    running.until_ready(600)
    return running


@pytest.fixture(scope="session")
def vllm_serves(
    tmp_path_factory: pytest.TempPathFactory, installed: Path, their_project: Path
) -> Iterator[tuple[Served, Served]]:
    """Two `vllm serve` of the bundled small model, with Waver's plugin and without it, started side by side. The plugin
    is the wheel's, in a project of somebody else."""
    with (
        vllm_serving(tmp_path_factory.mktemp("plugin"), plugin=True, python=installed, cwd=their_project) as one,
        vllm_serving(tmp_path_factory.mktemp("stock"), plugin=False) as other,
    ):
        one.until_up()
        other.until_up()
        yield one, other


@pytest.fixture(scope="session")
def vllm_serve(vllm_serves: tuple[Served, Served]) -> Served:
    """A `vllm serve` of the bundled small model with Waver's plugin."""
    return vllm_serves[0]


@pytest.fixture(scope="session")
def vllm_stock(vllm_serves: tuple[Served, Served]) -> Served:
    """The same without the plugin."""
    return vllm_serves[1]


@pytest.fixture
def client(running: Running) -> Iterator[openai.OpenAI]:
    with running.openai() as client:
        yield client


@pytest.fixture
def http(running: Running) -> Iterator[httpx.Client]:
    with running.http() as client:
        yield client


def until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {seconds} s for {what}")
        time.sleep(0.02)
