"""The page with answers of the bundled pair: calls of tools, searches, selections, and what has to be seen at once."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from tests.conftest import ROOT
from tests.server.browsing import Page, needs_chromium, text_of
from tests.server.test_page import ATTACK
from tests.server.test_page import chromium as chromium

if TYPE_CHECKING:
    from tests.conftest import Running

pytestmark = needs_chromium
TEMPLATE = ROOT / "tests" / "server" / "hermes.jinja"
CITY = {"type": "object", "properties": {"city": {"enum": ["Osk", ATTACK]}}, "required": ["city"]}
TOOLS = [{"type": "function", "function": {"name": name, "parameters": CITY}} for name in ("weather", "traffic")]
SUM = "What is 12 + 30 - 5 + 71 - 20?"


@pytest.fixture(scope="module")
def running(start: Callable[..., Running], tmp_path_factory: pytest.TempPathFactory) -> Running:
    """A server of the bundled pair, with a template that shows tools."""
    folder = tmp_path_factory.mktemp("answers")
    engines = {
        name: {"model": str(ROOT / "models" / name), "chat_template": str(TEMPLATE)} for name in ("small", "large")
    }
    frugal = {"name": "ead", "small": "small", "large": "large", "threshold": 0.01, "window": 1, "min_tokens": 1,
              "monitor": "small"}  # fmt: skip
    stores = {"retrieval": {"path": str(folder / "collections")}, "state": str(folder / "state")}
    stores["policies"] = {"l_rag": {"threshold": 0.18}}
    return start(config={"engines": engines, "presets": {"frugal": [frugal]}, **stores})


@pytest.fixture
def opened(chromium: Chrome, running: Running) -> Iterator[Callable[[str], Page]]:
    chromium.get_log("browser")
    yield lambda view: Page(chromium, running.url + "/", view)
    severe = [entry["message"] for entry in chromium.get_log("browser") if entry["level"] == "SEVERE"]
    assert [message for message in severe if "the server responded with a status of 400" not in message] == []


@pytest.fixture
def page(opened: Callable[[str], Page]) -> Page:
    page = opened("chat")
    page.set("#model", "small")
    page.set("#mode", "none")
    page.set("#max-tokens", 60)
    return page


def own(page: Page, name: str, **fields: Any) -> None:
    """Choose one policy, with these fields."""
    page.set("#mode", "own")
    page.click(f"#policy-{name}")
    for field, value in fields.items():
        page.set(f"#{name}-{field}", value)


def within(element: WebElement, selector: str) -> list[WebElement]:
    return element.find_elements(By.CSS_SELECTOR, selector)


def forced(name: str, **more: Any) -> str:
    return json.dumps({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": name}}, **more})


def test_a_call_is_marked_where_it_begins(page: Page) -> None:
    page.set("#extra", forced("weather"))
    article = page.ask("How is the weather?")
    (block,) = within(article, ".calling")
    assert text_of(block.find_element(By.CSS_SELECTOR, ".tool-mark")) == "✚ weather"
    tokens = within(block, ".token")
    shown = json.loads("".join(map(text_of, tokens)))
    assert shown["name"] == "weather"
    assert tokens[0].get_attribute("data-index") == "0", "the mark stands before the first token of the call"
    (event,) = within(article, ".plot .event.tool")
    assert text_of(event) == "✚calls weather"
    named = text_of(article.find_element(By.CSS_SELECTOR, ".call"))
    assert "weather" in named
    assert shown["arguments"]["city"] in named
    assert "The page runs none" in article.text
    assert not within(article, "img, script")
    tokens[-1].click()
    assert page.all("#tip .alternatives li"), "tokens of a call have their alternatives"
    page.accessible()
    # What was kept of it is the same.
    page.click("#new")
    page.click("#history")
    page.click("#dialog .title")
    (again,) = page.all("#turns .calling")
    assert json.loads("".join(map(text_of, within(again, ".token")))) == shown
    assert page.all("#turns .call")
    assert page.all("#turns .plot .event.tool")


def test_two_calls_have_a_mark_each(page: Page) -> None:
    """The parser tells a call's name some tokens after it began; its tokens are those from its brace on."""
    texts = [
        '[{"name": "weather", "arguments": {"city": "Osk"}}',
        ', {"name": "traffic", "arguments": {"city": "Osk"}}]',
    ]
    pieces = [list(text) for text in texts]
    chunks: list[dict[str, Any]] = []
    for call, letters in enumerate(pieces):
        name = json.loads(texts[call].strip(",[] "))["name"]
        end_of_name = texts[call].index(name) + len(name)
        begun = texts[call].index('{"city"')
        for at, letter in enumerate(letters):
            delta: dict[str, Any] = {"content": ""}
            if at == end_of_name:
                delta = {"tool_calls": [{"index": call, "id": f"c{call}", "function": {"name": name, "arguments": ""}}]}
            if begun <= at < begun + len('{"city": "Osk"}'):
                delta = {"tool_calls": [{"index": call, "function": {"arguments": letter}}]}
            trace = [{"token": letter, "id": 1, "engine": "small", "entropy": 0.1, "logprob": -0.1}]
            chunks.append({"delta": delta, "waver": {"trace": trace}, "finish_reason": None})
    marks, blocks, tools = page.script(
        "const {Answer} = await import('./static/answer.js'); const answer = new Answer();"
        "for (const each of arguments[0]) answer.take(each);"
        "answer.report = {tokens: {small: 9}, switches: 0, entropy: {mean: 1, max: 1, kind: 'exact'}}; answer.finish();"
        "const all = [...answer.words.querySelectorAll('.calling')];"
        "const text = (block) => [...block.querySelectorAll('.token')].map((span) => span.textContent).join('');"
        "return [all.map((block) => block.firstChild.textContent), all.map(text),"
        " answer.tools.map((tool) => tool.arguments)]",
        chunks,
    )
    assert marks == ["✚ weather", "✚ traffic"]
    assert blocks == ['[{"name": "weather", "arguments": {"city": "Osk"}}, ', texts[1][2:]]
    assert tools == ['{"city": "Osk"}', '{"city": "Osk"}']


def test_a_search_is_a_tree_that_can_be_followed(page: Page, running: Running) -> None:
    fields = {"delimiter": ".", "iterations": 12, "tokens": 500}
    own(page, "bes", **fields)
    page.set("#seed", 3)
    article = page.ask(SUM)
    body = {"model": "small", "messages": [{"role": "user", "content": SUM}], "max_tokens": 60, "seed": 3,
            "temperature": 0, "policy": [{"name": "bes", **fields}]}  # fmt: skip
    search = httpx.post(f"{running.v1}/chat/completions", json=body, timeout=60).json()["waver"]["search"]
    assert len(search["tree"]) > 2
    for i, node in enumerate(search["tree"]):
        (item,) = within(article, f"[data-report=search] li[data-node='{i}']")
        said = text_of(item.find_element(By.CSS_SELECTOR, ".node"))
        assert said.startswith(f"#{i}{ {'root': 'begin'}.get(node['how'], node['how']) }")
        assert f"score {node['score']:.2f}" in said
        assert ("nothing drawn" in said) == (node["how"] not in ("expand", "finish"))
        assert node["text"] in said
        if node["parents"]:
            above = item.find_element(By.XPATH, "ancestor::li[1]")
            assert above.get_attribute("data-node") == str(node["parents"][0])
        assert all(f"#{each}" in said for each in node["parents"][1:])
    given = article.find_element(By.CSS_SELECTOR, ".given").find_element(By.XPATH, "ancestor::li[1]")
    assert given.get_attribute("data-node") == str(search["chosen"])
    assert "way" in (given.get_attribute("class") or "")
    whole = text_of(article.find_element(By.CSS_SELECTOR, "[data-report=search]"))
    assert f"{search['tokens']['small']} tokens drawn by small" in whole
    assert f"{search['calls']} calls" in whole
    marks = [text_of(each) for each in within(article, ".goals li")]
    assert len(marks) == len(search["goals"])
    assert {mark[0] for mark in marks} <= {"✓", "✗"}
    page.accessible()


def test_the_runs_of_a_selection_are_side_by_side(page: Page) -> None:
    own(page, "entropy_judger", temperature=1.5)
    page.set("#seed", 5)
    article = page.ask(SUM)
    rows = within(article, "[data-report=selection] tbody tr")
    assert len(rows) == 5
    (given,) = [row for row in rows if "★ given" in text_of(row)]
    said = text_of(article.find_element(By.CSS_SELECTOR, "[data-report=selection] p"))
    assert f"Run {rows.index(given) + 1} of 5 is given: " in said
    assert "Tokens drawn: " in said
    page.accessible()


def test_a_chosen_token_is_let_go(page: Page) -> None:
    """The panel of a token that was clicked does not outlive its answer, nor a click elsewhere."""

    def choose() -> None:
        page.click("#turns .token")
        page.wait(lambda: page.one("#tip").is_displayed())

    page.ask("hello")
    choose()
    page.one("#message").click()
    assert not page.one("#tip").is_displayed()
    assert not page.all(".token.current")
    choose()
    page.one("#message").send_keys(Keys.ESCAPE)
    assert not page.one("#tip").is_displayed()
    choose()
    page.click("#turns .again")
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert not page.one("#tip").is_displayed()
    choose()
    page.click("#new")
    assert not page.one("#tip").is_displayed()


def test_an_error_stands_where_the_answer_would(page: Page) -> None:
    page.set("#max-tokens", -5)
    article = page.ask("hello")
    order = [each.get_attribute("class") for each in within(article, ":scope > *")]
    assert order.index("error") < order.index("actions")
    again = [each for each in within(article, "button") if each.is_displayed() and each.text == "Ask again"]
    assert len(again) == 1


def test_the_settings_say_what_will_decode(page: Page) -> None:
    assert page.one("#mode-note").text == "Plain decoding: small writes alone."
    page.set("#mode", "default")
    page.set("#model", "waver/frugal")
    assert page.one("#mode-note").text.startswith("ead: Switch between a small and a large model")
    page.set("#mode", "own")
    assert not page.one("#mode-note").is_displayed()


def test_a_comparison_says_what_the_large_model_took(opened: Callable[[str], Page]) -> None:
    page = opened("compare")
    assert "less sure" in page.one("#compare-key").text
    page.set("#compare-tokens", 12)
    page.set("#compare-question", SUM)
    page.click("#compare-run")
    page.wait(lambda: len(page.all("#compare-results .report")) == 3 and page.one("#compare-run").is_displayed())
    said = [text_of(each) for each in page.all("#compare-results .figure:nth-child(2)")]
    taken = text_of(page.all("#compare-summary tbody tr:nth-child(5) td")[2])
    assert [f"large alone took {taken} for its own answer" in each for each in said] == [True, True, False]
    assert said[2] == f"{taken} by large alone"
    assert page.one("#compare-key").is_displayed()


def test_on_a_phone_the_answers_come_into_view(opened: Callable[[str], Page]) -> None:
    page = opened("compare")
    with page.phone(390):
        page.set("#compare-tokens", 12)
        page.set("#compare-question", SUM)
        page.script("scrollTo(0, 0)")
        page.click("#compare-run")
        top = "return document.querySelector('#compare-results').getBoundingClientRect().top"
        page.wait(lambda: page.script(top) < 300)
        page.wait(lambda: len(page.all("#compare-results .report")) == 3 and page.one("#compare-run").is_displayed())
        assert page.script("return document.documentElement.scrollWidth") <= 390
        page.accessible()


def test_a_single_threshold_moves_both_ways(page: Page) -> None:
    page.set("#model", "waver/frugal")
    page.set("#mode", "default")
    page.set("#max-tokens", 24)
    page.ask(SUM)
    for key in (Keys.PAGE_UP, Keys.PAGE_DOWN):
        before = page.one("#turns [role=slider]").get_attribute("aria-valuenow")
        page.one("#turns [role=slider]").send_keys(key, Keys.ENTER)
        page.wait(lambda before=before: page.one("#turns [role=slider]").get_attribute("aria-valuenow") != before)
        page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
        assert not page.one("#ead-threshold_down-on").is_selected()
    assert page.one("#send").is_enabled()


def test_the_bundled_pair_is_called_a_toy(opened: Callable[[str], Page]) -> None:
    for view in ("compare", "chat"):
        page = opened(view)
        (said,) = [each.text for each in page.all(".toy") if each.is_displayed()]
        assert said.startswith("The models small and large are toys")
        assert "small invented world" in said
        page.accessible()


def test_decisions_are_told_in_plain_words(page: Page) -> None:
    page.set("#model", "waver/frugal")
    page.set("#mode", "default")
    page.ask(SUM)
    told = {}
    for token in page.all("#turns .token[data-then]"):
        page.script("arguments[0].click()", token)
        told[token.get_attribute("data-then")] = page.one("#tip").text
    assert "so the same engine goes on" in told["stay"]
    assert "so the other engine takes over" in told["switch"]
    page.one("#turns .tokens").send_keys(Keys.HOME)
    assert "so the same engine goes on" in text_of(page.one("#status"))


def test_a_comparison_says_what_its_curves_and_means_are(opened: Callable[[str], Page]) -> None:
    page = opened("compare")  # the recorded comparison
    key = [text_of(each).strip() for each in page.all("#compare-curves .key span")]
    assert key == [
        "small alone: entropy of the engine that wrote",
        "frugal: what ead compared with its threshold",
        "large alone: entropy of the engine that wrote",
    ]
    assert text_of(page.one("#compare-summary tbody tr:last-child th")) == "mean entropy of the engine that wrote"
    page.accessible()


def test_a_threshold_has_one_default(page: Page) -> None:
    said = text_of(page.one("#l_rag-threshold-help"))
    assert said.count("default") == 1
    assert "(default 0.18)" in said
    assert "null: the gate's own, " in said
