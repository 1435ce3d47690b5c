"""The playground page in a real browser, against a real server."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import httpx
import pytest
from selenium import webdriver
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

if TYPE_CHECKING:
    from tests.conftest import Running

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1280,900""".split()


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"]:
        options.add_argument(flag)
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, webdriver.ChromeService(DRIVER))
    yield driver
    driver.quit()


class Page:
    """The page as a person uses it."""

    def __init__(self, driver: Chrome, url: str) -> None:
        self.driver, self.url = driver, url
        driver.get(url)
        self.wait(lambda: self.all("#model option") or self.one("#key").is_displayed())

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        return WebDriverWait(self.driver, seconds, 0.05).until(lambda _: condition())

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def choose(self, select: str, value: str) -> None:
        self.one(f"{select} option[value='{value}']").click()

    def set(self, selector: str, value: object) -> None:
        """Set an input's value and send its `input` event, as a slider or a keyboard does."""
        self.driver.execute_script(
            "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input'))",
            self.one(selector),
            value,
        )

    def say(self, text: str) -> None:
        self.one("#message").send_keys(text + Keys.ENTER)

    def ask(self, text: str) -> WebElement:
        """Say it and wait for the end of the answer."""
        before = len(self.all("article"))
        self.say(text)
        self.wait(lambda: len(self.all("article[aria-busy=false]")) > before)
        return self.all("article")[-1]


def text_of(element: WebElement) -> str:
    return str(element.get_property("textContent"))


@pytest.fixture
def base_url(running: Running) -> str:
    return running.v1


@pytest.fixture
def page(chromium: Chrome, running: Running) -> Iterator[Page]:
    chromium.get_log("browser")  # what earlier pages said
    yield Page(chromium, running.url + "/")
    severe = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if "the server responded with a status of 400" not in entry["message"]] == []


def test_headers_and_files(base_url: str) -> None:
    root = base_url.removesuffix("/v1")
    for path, kind in (("/", "text/html"), ("/static/app.js", "javascript"), ("/static/style.css", "text/css")):
        for response in (httpx.get(root + path), httpx.head(root + path)):
            assert response.status_code == 200
            assert kind in response.headers["content-type"]
            assert "default-src 'none'" in response.headers["content-security-policy"]
            assert response.headers["x-content-type-options"] == "nosniff"
    for path in ("/static/../page.py", "/static/%2e%2e/page.py", "/static/..%2fpage.py", "/static/nothing.js"):
        assert httpx.get(root + path).status_code == 404
    html = httpx.get(root).text
    assert "<script>" not in html
    assert "style=" not in html


def test_nothing_turns_text_into_markup() -> None:
    static = Path(__file__).parents[2] / "server" / "static"
    for script in static.glob("*.js"):
        source = script.read_text()
        assert not [
            word
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
            if word in source
        ]


@needs_chromium
def test_tokens_show_entropy_and_engine(page: Page, base_url: str) -> None:
    page.choose("#model", "waver/frugal")
    page.set("#max-tokens", 40)
    question = "What is 34 + 25 - 17?"
    article = page.ask(question)
    body = {"model": "waver/frugal", "messages": [{"role": "user", "content": question}], "temperature": 0}
    answer = httpx.post(
        f"{base_url}/chat/completions", json=body | {"trace": True, "max_tokens": 40}, timeout=60
    ).json()
    trace = [t for t in answer["waver"]["trace"] if t["token"]]
    engines = [m["id"] for m in httpx.get(f"{base_url}/models").json()["data"]]
    bounds = [0.03, 0.1, 0.3, 0.7, 1.2, 2.0]
    assert text_of(article.find_element(By.CSS_SELECTOR, ".tokens")) == answer["choices"][0]["message"]["content"]
    shown = article.find_elements(By.CSS_SELECTOR, ".token")
    assert [(t.get_attribute("data-engine"), t.get_attribute("data-level")) for t in shown] == [
        (str(engines.index(t["engine"])), str(sum(t["entropy"] >= b for b in bounds))) for t in trace[: len(shown)]
    ]
    report = text_of(article.find_element(By.CSS_SELECTOR, ".report"))
    assert f"relative cost{answer['waver']['relative_cost']:.2f}" in report
    assert f"switches{answer['waver']['switches']}" in report
    assert article.find_element(By.CSS_SELECTOR, ".sparkline path.line").get_attribute("d")
    assert page.one("#status").get_property("textContent") == f"Answer: {answer['choices'][0]['message']['content']}"

    ActionChains(page.driver).move_to_element(shown[1]).perform()
    tip = page.wait(lambda: page.one("#tip").text)
    assert str(trace[1]["id"]) in tip
    assert f"{trace[1]['entropy']:.4f} nats" in tip
    article.find_element(By.CSS_SELECTOR, ".tokens").send_keys(Keys.ARROW_RIGHT)
    assert str(trace[2]["id"]) in page.one("#tip").text


@needs_chromium
def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    page.ask("hello")
    loaded = page.driver.execute_script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(loaded) > 5
    assert {urlsplit(url).netloc for url in loaded} == {urlsplit(page.url).netloc}


@needs_chromium
def test_policy_panel_comes_from_the_schemas(page: Page, base_url: str) -> None:
    page.choose("#mode", "own")
    for policy in httpx.get(f"{base_url}/policies").json()["data"]:
        for name, schema in policy["schema"]["properties"].items():
            if name == "name" or schema.get("type") == "object" or "$ref" in schema:  # for callers in code
                continue
            assert page.all(f"#{policy['name']}-{name}"), f"{policy['name']} has no input for {name}"
    page.one("#policy-random_switch").click()
    page.set("#random_switch-rate", 1)
    page.set("#max-tokens", 12)
    label = page.ask("hello").find_element(By.CSS_SELECTOR, ".bar").get_attribute("aria-label")
    assert label.startswith("Tokens by engine: large ")
    page.one("#policy-ead").click()
    error = page.ask("hello").find_element(By.CSS_SELECTOR, ".error").text
    assert page.one("#message").get_property("value") == "hello"
    assert "ead" in error
    assert "random_switch" in error


@needs_chromium
def test_parameters_that_are_objects_are_written_as_json(page: Page) -> None:
    page.choose("#mode", "own")
    page.one("#policy-diffadapt").click()
    page.choose("#diffadapt-strategy", "easy")
    assert '"share":0.4' in page.one("#diffadapt-easy").get_property("value")
    page.set("#max-tokens", 12)
    page.set("#diffadapt-easy", '{"words": "Well", "share": 0.25}')
    report = text_of(page.ask("hello").find_element(By.CSS_SELECTOR, ".report"))
    assert "strategyeasy" in report
    assert "3 (100 %)" in report
    page.set("#diffadapt-easy", '{"words')
    assert "policy[0].easy" in page.ask("hello").find_element(By.CSS_SELECTOR, ".error").text


@needs_chromium
def test_errors_are_shown_and_survived(page: Page) -> None:
    page.set("#max-tokens", -5)
    assert "max_tokens" in page.ask("hello").find_element(By.CSS_SELECTOR, ".error").text
    page.set("#max-tokens", 8)
    assert page.ask("").find_elements(By.CSS_SELECTOR, ".report")


@needs_chromium
def test_markup_stays_text(page: Page) -> None:
    page.set("#max-tokens", 8)
    attack = "<img src=x onerror=alert(1)><script>alert(1)</script>"
    article = page.ask(attack)
    assert article.find_element(By.CSS_SELECTOR, ".question").text == attack
    assert not article.find_elements(By.CSS_SELECTOR, "img, script")


@needs_chromium
def test_stop_and_new_chat(page: Page, running: Running) -> None:
    page.choose("#mode", "none")
    page.set("#temperature", 2)
    page.set("#max-tokens", 900)
    for _ in range(10):  # a short answer may end before the button is reached
        page.say("hello")
        page.wait(lambda: page.all("article:last-child .token") or page.all("article:last-child[aria-busy=false]"))
        page.driver.execute_script("document.getElementById('stop').click()")
        page.wait(lambda: page.all("article:last-child[aria-busy=false]"))
        if "Stopped." in text_of(page.all("article")[-1]):
            break
    else:
        pytest.fail("no answer could be stopped")
    assert running.idle(within=30)
    assert page.one("#send").is_displayed()
    page.one("#new").click()
    assert not page.all("article")
    assert page.one("#examples button").is_displayed()
    page.set("#max-tokens", 8)
    page.one("#examples button").click()
    page.wait(lambda: page.all("article .report"))


@needs_chromium
def test_a_key_is_asked_for(chromium: Chrome, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVER_TEST_KEYS", "sk-wave")
    page = Page(chromium, start(api_keys_env="WAVER_TEST_KEYS").url + "/")
    assert "API key" in page.wait(lambda: page.one("#status").text)
    page.one("#api-key").send_keys("sk-wave" + Keys.ENTER)
    page.wait(lambda: page.all("#model option"))
    page.set("#max-tokens", 8)
    assert page.ask("hello").find_elements(By.CSS_SELECTOR, ".report")
    page.driver.refresh()
    page.wait(lambda: page.all("#model option"))
    assert page.driver.execute_script("return localStorage.length") == 0


@needs_chromium
def test_a_starting_server_is_waited_for(chromium: Chrome, start: Callable[..., Running]) -> None:
    running = start()
    running.runtime.loaded = False
    chromium.get(running.url)
    status = chromium.find_element(By.ID, "status")
    WebDriverWait(chromium, 10).until(lambda _: "starting" in status.text)
    running.runtime.loaded = True
    WebDriverWait(chromium, 10).until(lambda _: chromium.find_elements(By.CSS_SELECTOR, "#model option"))
    assert not status.get_property("textContent")
