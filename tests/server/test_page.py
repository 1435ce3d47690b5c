"""The playground page in a real browser, against a real server."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

import httpx
import pytest
from selenium.webdriver import ActionChains, Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from tests.server.browsing import Page, launch, needs_chromium, text_of

if TYPE_CHECKING:
    from tests.conftest import Running

STATIC = Path(__file__).parents[2] / "server" / "static"
MOST = 300_000
"""Bytes of all files of the page."""
ATTACK = "<img src=x onerror=alert(1)><script>alert(1)</script>"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    driver = launch(tmp_path_factory.mktemp("chromium"))
    yield driver
    driver.quit()


@pytest.fixture(scope="module")
def running(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server with collections and memories of its own."""
    folder = tmp_path_factory.mktemp("page")
    return start(config={"retrieval": {"path": str(folder / "collections")}, "state": str(folder / "state")})


@pytest.fixture
def base_url(running: Running) -> str:
    return running.v1


@pytest.fixture
def opened(chromium: Chrome, running: Running) -> Iterator[Callable[[str], Page]]:
    chromium.get_log("browser")  # what earlier pages said
    yield lambda view: Page(chromium, running.url + "/", view)
    severe = [entry for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert [entry for entry in severe if "the server responded with a status of 400" not in entry["message"]] == []


@pytest.fixture
def page(opened: Callable[[str], Page]) -> Page:
    return opened("chat")


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
    modules = {file.name for file in STATIC.glob("*.js")} - {"app.js"}
    assert set(re.findall(r'rel="modulepreload" href="static/([\w.]+)"', html)) == modules, "fetched at once"
    assert "style=" not in html
    assert sum(file.stat().st_size for file in STATIC.iterdir()) < MOST


def test_nothing_turns_text_into_markup() -> None:
    for script in STATIC.glob("*.js"):
        source = script.read_text()
        assert not [
            word
            for word in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(")
            if word in source
        ]


@needs_chromium
def test_the_chart_and_the_tints_show_what_decides(page: Page, base_url: str) -> None:
    page.set("#model", "waver/frugal")
    page.set("#max-tokens", 40)
    question = "What is 34 + 25 - 17?"
    article = page.ask(question)
    body = {"model": "waver/frugal", "messages": [{"role": "user", "content": question}], "temperature": 0}
    answer = httpx.post(
        f"{base_url}/chat/completions", json=body | {"trace": True, "max_tokens": 40}, timeout=60
    ).json()
    trace = answer["waver"]["trace"]
    engines = [m["id"] for m in httpx.get(f"{base_url}/models").json()["data"]]
    assert text_of(article.find_element(By.CSS_SELECTOR, ".tokens")) == answer["choices"][0]["message"]["content"]
    shown = article.find_elements(By.CSS_SELECTOR, ".token")
    shares = page.script(
        "const {share} = await import('./static/scale.js'); return arguments[0].map((nats) => share(nats).toFixed(3))",
        [t["decision"]["ead"]["value"] for t in trace],
    )
    for span in shown:
        token = trace[int(span.get_attribute("data-index") or 0)]
        assert span.get_attribute("data-engine") == str(engines.index(token["engine"]))
        assert span.get_attribute("data-then") == token["decision"]["ead"]["then"]
        style = page.script("return arguments[0].style.getPropertyValue('--h')", span)
        assert style == shares[trace.index(token)]
    switches = [t for t in trace if t["decision"]["ead"]["then"] == "switch"]
    assert switches
    assert len(article.find_elements(By.CSS_SELECTOR, ".event.switch")) == len(switches)
    assert article.find_element(By.CSS_SELECTOR, "path.decided").get_attribute("d").count("H") == len(trace)
    assert page.one("#status").get_property("textContent") == f"Answer: {answer['choices'][0]['message']['content']}"

    ActionChains(page.driver).move_to_element(shown[1]).perform()
    tip = page.wait(lambda: page.one("#tip").text)
    second = trace[int(shown[1].get_attribute("data-index") or 0)]
    assert str(second["id"]) in tip
    assert f"{second['entropy']:.4f} nats" in tip
    assert len(page.all("#tip .alternatives li")) == 5
    assert article.find_element(By.CSS_SELECTOR, ".cursor").get_attribute("visibility") == "visible"
    words = article.find_element(By.CSS_SELECTOR, ".tokens")
    words.send_keys(Keys.HOME, Keys.ARROW_RIGHT)
    said = text_of(page.one("#status"))
    assert "alternatives" in said
    assert f"by {second['engine']}" in said
    # The other way round: a place in the chart chooses the token.
    plot = article.find_element(By.CSS_SELECTOR, ".plot svg")
    ActionChains(page.driver).move_to_element(plot).perform()
    current = page.wait(lambda: article.find_elements(By.CSS_SELECTOR, ".token.current"))
    assert abs(int(current[0].get_attribute("data-index") or 0) - len(trace) // 2) < 4
    page.accessible()


@needs_chromium
def test_a_dragged_threshold_runs_the_answer_again(page: Page) -> None:
    page.set("#model", "waver/frugal")
    page.set("#max-tokens", 24)
    article = page.ask("hello")
    handle = article.find_element(By.CSS_SELECTOR, "[role=slider]")
    before = float(handle.get_attribute("aria-valuenow") or "nan")
    ActionChains(page.driver).click_and_hold(handle).move_by_offset(0, 60).release().perform()
    page.wait(lambda: page.all("#turns article[aria-busy=false] [role=slider]") and not page.all("[aria-busy=true]"))
    now = page.one("#turns [role=slider]").get_attribute("aria-valuenow") or "nan"
    assert 0 < float(now) < before
    assert page.one("#mode").get_property("value") == "own"
    assert float(page.one("#ead-threshold").get_property("value")) == float(now)
    assert len(page.all("#turns article")) == 1
    handle = page.one("#turns [role=slider]")
    handle.send_keys(Keys.ARROW_UP, Keys.ARROW_UP, Keys.ENTER)
    page.wait(lambda: float(page.one("#ead-threshold").get_property("value")) > float(now))
    page.wait(lambda: page.all("#turns article[aria-busy=false] [role=slider]"))


@needs_chromium
def test_the_cost_is_told_in_full(page: Page) -> None:
    page.set("#max-tokens", 12)
    page.set("#model", "large")
    page.ask("hello")
    page.set("#model", "small")
    article = page.ask("hello again")
    cost, time = (text_of(each) for each in article.find_elements(By.CSS_SELECTOR, ".headline .figure"))
    assert 0 < float(cost.split()[0]) < 1
    assert "what large alone computes" in cost
    assert "large alone: about" in time
    assert "estimated from its measured steps" in time
    parts = article.find_element(By.CSS_SELECTOR, ".cost").get_attribute("aria-label") or ""
    assert "writing" in parts
    assert "reading" in parts


@needs_chromium
def test_nothing_is_loaded_from_elsewhere(page: Page) -> None:
    page.set("#max-tokens", 8)
    page.ask("hello")
    loaded = page.script("return performance.getEntriesByType('resource').map(e => e.name)")
    assert len(loaded) > 5
    assert {urlsplit(url).netloc for url in loaded} == {urlsplit(page.url).netloc}
    moment = page.script("return performance.getEntriesByType('navigation')[0].domContentLoadedEventEnd")
    assert moment < 10_000  # milliseconds; some tens on a machine that does nothing else


@needs_chromium
def test_the_forms_come_from_the_schemas(page: Page, base_url: str) -> None:
    page.set("#mode", "own")
    for policy in httpx.get(f"{base_url}/policies").json()["data"]:
        for name in policy["schema"]["properties"]:
            if name != "name":
                assert page.all(f"#{policy['name']}-{name}"), f"{policy['name']} has no input for {name}"
    # A preset is the starting point; 0.0002 can be set; null is null and comes back.
    page.set("#mode", "preset:frugal")
    assert page.one("#policy-ead").is_selected()
    assert float(page.one("#ead-threshold").get_property("value")) == 3
    assert [each.text for each in page.all("#ead-small option")] == ["small", "large"]
    down = page.one("#ead-threshold_down")
    assert not down.is_enabled()
    page.set("#ead-threshold", 0.0002)
    page.click("#ead-threshold_down-on")
    assert down.is_enabled()
    page.set("#ead-threshold_down", 0.5)
    page.wait(lambda: not page.one("#send").is_enabled())
    assert "threshold_down must not be above threshold" in page.one("#policies .error").text
    page.click("#ead-threshold_down-on")
    page.wait(lambda: page.one("#send").is_enabled())
    # What cannot stand together cannot be chosen, and what only evaluations need is out of sight.
    assert not page.one("#policy-route").is_enabled()
    assert "not beside ead" in text_of(page.one("fieldset:has(#policy-route)"))
    assert not page.one("#policy-random_switch").is_displayed()
    assert page.one("#diffadapt-mix").find_element(By.XPATH, "ancestor::details") is not None
    page.set("#max-tokens", 12)
    article = page.ask("hello")
    assert "0.0002" in (article.find_element(By.CSS_SELECTOR, "[role=slider]").get_attribute("aria-valuetext") or "")
    page.accessible()


@needs_chromium
def test_every_policys_report_is_shown(page: Page) -> None:
    page.set("#mode", "own")
    page.click("#policy-diffadapt")
    page.set("#diffadapt-strategy", "easy")
    page.click("#policy-forced_answer")
    page.set("#max-tokens", 40)
    page.set("#forced_answer-words", " So:")
    page.set("#diffadapt-easy", '{"words": "Well", "share": 0.5}')
    page.set("#forced_answer-tokens", 4)
    article = page.ask("hello")
    said = {
        each.get_attribute("data-report"): text_of(each) for each in article.find_elements(By.CSS_SELECTOR, ".said")
    }
    assert "easy" in said["strategy"]
    assert "forced" in said["forced_answer"]
    assert "whether the answer was cut off" in said["forced_answer"]
    assert article.find_elements(By.CSS_SELECTOR, ".event.strategy")
    page.set("#diffadapt-easy", '{"words')
    page.wait(lambda: page.one("#diffadapt-easy").get_attribute("aria-invalid"))
    page.accessible()


@needs_chromium
def test_errors_are_shown_and_survived(page: Page) -> None:
    page.set("#max-tokens", -5)
    article = page.ask("hello")
    assert "max_tokens" in article.find_element(By.CSS_SELECTOR, ".error").text
    page.set("#max-tokens", 8)
    page.click("#turns .error button")
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert len(page.all("#turns article")) == 1
    assert page.one(".question").text == "hello"


@needs_chromium
def test_markup_stays_text(page: Page) -> None:
    page.set("#max-tokens", 8)
    article = page.ask(ATTACK)
    assert article.find_element(By.CSS_SELECTOR, ".question").text == ATTACK
    page.click("#history")
    assert ATTACK in page.one("#dialog").text
    page.click("#dialog-close")
    page.click("#turns .code")
    assert "onerror" in page.one("#dialog pre").text
    assert not page.all("article img, article script, #dialog img, #dialog script")


@needs_chromium
def test_side_by_side(opened: Callable[[str], Page]) -> None:
    page = opened("compare")
    assert len(page.all("#compare-results .column")) == 3  # the recorded one
    assert [each.text for each in page.all(".verdict")] == ["✗ wrong", "✓ right", "✓ right"]
    page.accessible()
    page.set("#compare-tokens", 16)
    page.set("#compare-question", "")
    page.click("#compare-run")
    assert page.one("#compare-question") == page.driver.switch_to.active_element
    assert page.one("#compare-question").get_property("validationMessage") == "A question is needed."
    page.one("#compare-question").send_keys(ATTACK)
    page.click("#add-column")
    page.set("#compare-columns li:nth-child(4) select", "waver/coin")
    page.one("#compare-question").send_keys(Keys.ENTER)
    page.wait(lambda: len(page.all("#compare-results .report")) == 4 and page.one("#compare-run").is_displayed())
    names = [text_of(each).strip() for each in page.all("#compare-summary thead th")]
    assert names == ["small alone", "frugal", "large alone", "coin"]
    lines = [row.find_elements(By.CSS_SELECTOR, "th, td") for row in page.all("#compare-summary tbody tr")]
    rows = {text_of(line[0]): [text_of(each) for each in line[1:]] for line in lines}
    assert rows["tokens"][0].startswith("small ")
    assert rows["cost"][2] == "1.00"
    assert rows["text"][2].startswith(("differs from token", "the same"))
    assert all(each.endswith("s") for each in rows["seconds"])
    assert len(page.all("#compare-curves path.curve")) == 4
    assert not page.all("#compare img, #compare-results script")
    page.accessible()
    assert not page.one("#compare-stale").is_displayed()
    page.set("#compare-columns li:nth-child(4) select", "large")
    assert "before the ways were changed" in page.one("#compare-stale").text
    page.accessible()
    page.set("#compare-columns li:nth-child(4) select", "waver/coin")
    assert not page.one("#compare-stale").is_displayed()
    with page.phone(360):
        assert page.sideways() <= 0


@needs_chromium
def test_documents_are_kept_found_and_used(opened: Callable[[str], Page], http: httpx.Client) -> None:
    page = opened("data")
    page.accessible()
    page.one("#collection-name").send_keys("river-notes" + Keys.ENTER)
    item = page.wait(lambda: [each for each in page.all("#collections li") if "river-notes" in each.text])[0]
    page.set("#mode", "own")
    page.wait(lambda: "river-notes" in text_of(page.one("#l_rag-collection")))
    note = http.post(
        "/v1/collections/river-notes/documents",
        json={"documents": [{"id": ATTACK, "text": f"{ATTACK} The Osk flows."}]},
    )
    assert note.status_code == 200
    page.click("#to-chat")
    page.click("#to-data")
    page.wait(lambda: "1 document," in page.one("#collections").text)
    page.click("#collections details summary")
    page.wait(lambda: ATTACK in text_of(page.one("#collections .documents")))
    page.accessible()
    item = page.all("#collections li.card")[0]
    item.find_element(By.CSS_SELECTOR, "input[type=search]").send_keys("Which river flows?" + Keys.ENTER)
    page.wait(lambda: ATTACK in page.one("#collections .passages").text)
    assert not page.all("#data img, #data script")
    page.accessible()
    page.click("#to-chat")
    page.click("#policy-l_rag")
    page.set("#l_rag-gate", "always")
    page.set("#max-tokens", 8)
    article = page.ask("Which river flows?")
    said = text_of(article.find_element(By.CSS_SELECTOR, "[data-report=retrieval]"))
    assert "The Osk flows." in said
    assert article.find_elements(By.CSS_SELECTOR, ".event.look_up")
    page.click("#to-data")
    page.click("#collections [aria-label='Delete river-notes']")
    page.click("#collections .danger")
    page.wait(lambda: "river-notes" not in page.one("#collections").text)


@needs_chromium
def test_a_file_is_attached(page: Page, tmp_path: Path, http: httpx.Client) -> None:
    file = tmp_path / "osk.txt"
    file.write_text("The Osk flows through Darpass.")
    page.set("#max-tokens", 8)
    page.one("#attach").send_keys(str(file))
    page.wait(lambda: "osk.txt" in page.one("#documents").text)
    page.set("#mode", "own")
    assert page.one("#policy-l_rag").is_enabled()
    assert "chat-" in text_of(page.one("#l_rag-collection"))
    page.set("#mode", "default")
    article = page.ask("Which river flows through Darpass?")
    assert "The Osk flows" in text_of(article.find_element(By.CSS_SELECTOR, "[data-report=retrieval]"))
    page.accessible()
    page.click("#to-data")
    page.wait(lambda: "attached in a chat: osk.txt (“Which river" in page.one("#collections").text)
    page.accessible()
    for each in http.get("/v1/collections").json()["data"]:
        http.delete(f"/v1/collections/{each['name']}")


@needs_chromium
def test_the_dashboard_shows_the_last_hour(opened: Callable[[str], Page], http: httpx.Client) -> None:
    body = {"model": "large", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 7, "ignore_eos": True}
    assert http.post("/v1/chat/completions", json=body).status_code == 200
    page = opened("dashboard")
    cards = page.wait(
        lambda: {text_of(each.find_element(By.CSS_SELECTOR, "h3")): each for each in page.all("#dashboard .card")}
    )
    assert "large" in text_of(cards["Tokens by engine"])
    assert "half within" in text_of(cards["Time of an answer"])
    assert "small engine wrote alone included" in text_of(cards["Cost saved by all answers"])
    assert cards["Requests"].find_elements(By.CSS_SELECTOR, "svg rect")
    heads = [text_of(each) for each in cards["Per key"].find_elements(By.CSS_SELECTOR, "thead th")]
    assert "cost, in billions of parameters × tokens" in heads
    assert "cost of the largest engine alone, in billions of parameters × tokens" in heads
    assert "Cost is work" in text_of(cards["Per key"].find_element(By.CSS_SELECTOR, "caption"))
    row = cards["Per key"].find_element(By.CSS_SELECTOR, "th[scope=row]")
    page.script("arguments[0].textContent = 'a-key-with-a-long-name'", row)
    assert row.size["height"] < 40, "in one line"
    assert page.sideways() <= 0
    page.accessible()


@needs_chromium
def test_on_a_phone(opened: Callable[[str], Page]) -> None:
    page = opened("chat")
    with page.phone(360):
        page.set("#model", "waver/frugal")
        page.set("#max-tokens", 24)
        page.say("hello")
        page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
        token = page.all("#turns .token")[2]
        page.script("arguments[0].scrollIntoView({block: 'center'})", token)
        where = page.script("const at = arguments[0].getClientRects()[0]; return [at.left + 2, at.top + 4]", token)
        for kind, points in (("touchStart", [{"x": where[0], "y": where[1]}]), ("touchEnd", [])):
            page.driver.execute_cdp_cmd("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
        page.wait(lambda: page.one("#tip").is_displayed())
        assert page.all("#tip .alternatives li")
        for view in ("compare", "data", "dashboard", "chat"):
            page.click(f"#to-{view}")
            page.wait(lambda view=view: page.one(f"#{view}").is_displayed())
            assert page.sideways() <= 0, view
        page.click("#open-settings")
        assert page.one("#model").is_displayed()
        page.accessible()
        page.script(
            "document.getElementById('trouble').textContent = 'A word. '.repeat(30); "
            "document.getElementById('trouble').hidden = false"
        )
        assert page.sideways() <= 0


@needs_chromium
def test_stop_edit_again_and_new(page: Page, running: Running) -> None:
    page.set("#mode", "none")
    page.set("#temperature", 2)
    page.set("#max-tokens", 900)
    for _ in range(10):  # a short answer may end before the button is reached
        page.say("hello")
        page.wait(lambda: page.all("#turns article:last-child .token, #turns article:last-child[aria-busy=false]"))
        page.click("#stop")
        page.wait(lambda: page.all("#turns article:last-child[aria-busy=false]"))
        if "Stopped." in text_of(page.all("#turns article")[-1]):
            break
    else:
        pytest.fail("no answer could be stopped")
    page.driver.refresh()
    page.wait(lambda: page.all("body[data-ready]"))
    page.script("localStorage.setItem('waver-conversations', '[]')")
    page.set("#max-tokens", -5)
    page.ask("a first answer that fails")
    page.driver.refresh()
    page.wait(lambda: page.all("body[data-ready]"))
    page.click("#history")
    page.click("#dialog .title")
    page.set("#max-tokens", 8)
    page.click("#turns .note button, #turns .error button")
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert [each.text for each in page.all(".question")] == ["a first answer that fails"]
    assert running.idle(within=30)
    assert page.one("#send").is_displayed()
    page.click("#new")
    assert not page.all("#turns article")
    page.set("#max-tokens", 8)
    page.click("#examples button")
    page.wait(lambda: page.all("#turns article .report"))
    page.ask("second")
    again = page.one("#turns article .again")
    page.click("#turns article .again")
    assert again.text == "Ask again and drop 1 later turn"
    page.one("#message").click()
    assert again.text == "Ask again"
    assert len(page.all("#turns article")) == 2
    page.click("#turns article .edit")
    assert page.one(".editing button[type=submit]").text == "Ask and drop 1 later turn"
    page.one(".editing textarea").send_keys(Keys.CONTROL + "a" + Keys.NULL + "something else")
    page.click(".editing button[type=submit]")
    page.wait(lambda: [each.text for each in page.all(".question")] == ["something else"])
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    page.click("#turns article .again")
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert len(page.all("#turns article")) == 1
    page.click("#turns .edit")
    page.one(".editing textarea").send_keys(Keys.SHIFT + Keys.ENTER + Keys.NULL + "and more" + Keys.ENTER)
    page.wait(lambda: [each.text for each in page.all(".question")] == ["something else\nand more"])
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))


@needs_chromium
def test_a_conversation_comes_back(page: Page, running: Running) -> None:
    page.set("#max-tokens", 8)
    page.set("#mode", "preset:coin")
    page.ask("Remember me")
    page.wait(lambda: "tokens" in page.one("#context-words").text)
    page.click("#link")
    link = page.one("#dialog pre").text
    page.accessible()
    page.driver.get("about:blank")
    again = Page(page.driver, running.url + "/", link.split("#")[1])
    assert again.one("#max-tokens").get_property("value") == "8"
    assert again.one("#policy-random_switch").is_selected()
    again.click("#history")
    page.accessible()
    kept = len(again.all("#dialog .title"))
    again.one("#dialog .all").click()
    assert re.search(r"Delete (all \d+ conversations|the only conversation)\?", again.one("#dialog .all").text)
    again.script("document.getElementById('dialog-close').focus()")
    assert again.one("#dialog .all").text == "Delete all"
    assert len(again.all("#dialog .title")) == kept
    again.click("#dialog .title")
    assert again.one(".question").text == "Remember me"
    assert again.all("#turns .report")
    assert again.all("#turns .chart svg")
    again.click("#turns .code")
    shown = [each.text for each in again.all("#dialog pre")]
    assert [
        part for part in ("curl ", "openai.OpenAI(", "new OpenAI(") if not any(part in each for each in shown)
    ] == []
    assert "random_switch" in shown[1]


@needs_chromium
def test_a_full_conversation_is_called_full(page: Page) -> None:
    page.set("#mode", "none")
    page.set("#model", "small")
    page.set("#extra", '{"ignore_eos": true}')
    page.set("#max-tokens", 4)
    assert "limit of tokens" in page.ask("hello").text
    page.set("#max-tokens", 99999)
    assert "The conversation is full" in page.ask("hello").text
    page.accessible()
    page.click("#turns .full button")
    assert not page.all("#turns article")
    page.set("#message", "word " * 3000)
    page.wait(lambda: "too long to be sent" in page.one("#context-words").text)
    assert not page.one("#send").is_enabled()
    assert "too long" in (page.one("#send").get_attribute("title") or "")
    page.accessible()
    page.set("#message", "hello")
    page.wait(lambda: page.one("#send").is_enabled())
    page.set("#system", "word " * 3000)
    page.set("#extra", "")
    page.one("#message").send_keys(Keys.ENTER)  # before it is counted
    note = page.wait(lambda: page.one("#turns .full"))
    assert "The conversation is full" in note.text
    assert [each.text for each in page.all("#turns article button") if each.is_displayed()] == [
        "New chat",
        "Edit",
        "Compare",
        "Code",
    ]
    page.click("#turns .full button")
    page.set("#system", "")


@needs_chromium
def test_a_key_is_asked_for(chromium: Chrome, start: Callable[..., Running], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WAVER_TEST_KEYS", "sk-wave")
    page = Page(chromium, start(api_keys_env="WAVER_TEST_KEYS").url + "/")
    assert "API key" in page.wait(lambda: page.one("#trouble").text)
    page.accessible()
    page.one("#api-key").send_keys("sk-wave" + Keys.ENTER)
    page.wait(lambda: page.all("body[data-ready]"))
    page.set("#max-tokens", 8)
    assert page.ask("hello").find_elements(By.CSS_SELECTOR, ".report")
    page.click("#turns .code")
    assert "sk-wave" not in page.one("#dialog").text
    page.driver.refresh()
    page.wait(lambda: page.all("body[data-ready]"))
    assert "sk-wave" not in str(page.script("return JSON.stringify(localStorage) + location.href"))


@needs_chromium
def test_a_server_that_starts_freezes_or_dies_is_told(chromium: Chrome, start: Callable[..., Running]) -> None:
    running = start()
    running.runtime.loaded = False
    chromium.get_log("browser")  # what earlier pages said
    chromium.get(running.url)
    trouble = chromium.find_element(By.ID, "trouble")
    WebDriverWait(chromium, 10).until(lambda _: "starting" in trouble.text)
    assert trouble.get_attribute("class") == "calm"
    WebDriverWait(chromium, 10).until(lambda _: len(chromium.find_elements(By.CSS_SELECTOR, ".column .report")) == 3)
    assert "Recorded with the pair" in chromium.find_element(By.ID, "compare-lead").text
    run = chromium.find_element(By.ID, "compare-run")
    assert not run.is_enabled()
    assert not [line for line in chromium.get_log("browser") if line["level"] == "SEVERE"]
    running.runtime.loaded = True
    WebDriverWait(chromium, 10).until(lambda _: run.is_enabled())
    assert len(chromium.find_elements(By.CSS_SELECTOR, ".column .report")) == 3
    page = Page(chromium, running.url + "/")
    page.set("#max-tokens", 900)
    page.set("#extra", '{"ignore_eos": true}')
    page.say("Are you there?")
    page.wait(lambda: page.all("#turns .token"))
    running.server.loop.call_soon_threadsafe(time.sleep, 5)  # nothing is answered meanwhile
    page.wait(lambda: "does not answer" in page.one("#trouble").text, seconds=20)
    page.wait(lambda: not page.one("#trouble").text, seconds=20)
    running.server.force_exit = running.server.should_exit = True
    page.wait(lambda: "The server is gone" in page.one("#trouble").text, seconds=20)
    page.wait(lambda: page.all("#turns .error"))
    assert page.one(".question").text == "Are you there?"
    assert page.one("#turns .error button").is_displayed()
