"""The conversation on the page while an answer is streamed, and after a reload."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By

from tests.server.browsing import Page, needs_chromium, text_of
from tests.server.test_page import chromium as chromium
from tests.server.test_page import opened as opened
from tests.server.test_page import page as page
from tests.server.test_page import running as running

pytestmark = needs_chromium
STREAM = """
const asked = window.fetch;
window.fetch = (path, options) => {
  if (!String(path).includes("chat/completions")) return asked(path, options);
  return Promise.resolve(new Response(new ReadableStream({start: (stream) => { window.stream = stream; }})));
};
window.push = (text) => window.stream.enqueue(new TextEncoder().encode(text));
"""
REPORT: dict[str, Any] = {
    "policy": [],
    "tokens": {"small": 3},
    "switches": 0,
    "entropy": {"mean": 1, "max": 1, "kind": "exact"},
}


class Streamed:
    """An answer of which the test sends the pieces."""

    def __init__(self, page: Page, begin: Callable[[Page], object] = lambda page: page.say("hello")) -> None:
        self.page = page
        page.script(STREAM)
        begin(page)
        self.wait()

    def wait(self) -> None:
        """Wait until the page asks for an answer."""
        self.page.wait(lambda: self.page.script("return Boolean(window.stream)"))

    def push(self, choice: dict[str, Any], **more: Any) -> None:
        chunk = {"choices": [{"index": 0, "finish_reason": None, **choice}], **more}
        self.page.script("window.push(arguments[0])", f"data: {json.dumps(chunk)}\n\n")

    def send(self, text: str, *tokens: str, **decision: Any) -> None:
        """Send a text, made by these tokens."""
        made = {"id": 1, "engine": "small", "entropy": 0.1, "logprob": -0.1}
        trace = [{"token": token, **made, **decision} for token in tokens or (text,)]
        self.push({"delta": {"content": text}, "waver": {"trace": trace}})

    def finish(self, **more: Any) -> None:
        """End the answer, with these keys of a chunk."""
        self.push({"delta": {}, "finish_reason": "length"}, **{"waver": REPORT, **more})
        self.page.script("window.push('data: [DONE]\\n\\n'); window.stream = null")

    def end(self) -> None:
        """End the answer of a conversation."""
        self.finish()
        self.page.wait(lambda: self.page.all("#turns article[aria-busy=false] .report"))


def reload(page: Page) -> None:
    page.driver.refresh()
    page.wait(lambda: page.all("body[data-ready]"))


def shown(page: Page) -> list[tuple[str, str | None]]:
    """The tokens of the answer, with their texts."""
    return [(text_of(each), each.get_attribute("data-index")) for each in page.all("#turns .token")]


def restore(page: Page) -> None:
    """Reload the page and open the last conversation."""
    reload(page)
    page.click("#history")
    page.click("#dialog .title")


def test_tokens_without_text_of_their_own_come_back(page: Page) -> None:
    """Control tokens have no text, and half a code point has not its own: the others keep theirs."""
    answer = Streamed(page)
    answer.send("", "")
    answer.send(" one", " one")
    answer.send("", "\ufffd")
    answer.send("\u00e9", "\ufffd")
    answer.send(" two", " two")
    answer.send("", "")
    answer.end()
    assert shown(page) == [("", "0"), (" one", "1"), ("\u00e9", "2"), (" two", "4"), ("", "5")]
    page.click("#turns .token")
    assert "a control token" in page.one("#tip").text
    page.accessible()
    before = shown(page)
    restore(page)
    assert shown(page) == before


def test_an_answer_of_control_tokens_only_comes_back(page: Page) -> None:
    answer = Streamed(page)
    for _ in range(3):
        answer.send("", "")
    answer.end()
    assert shown(page) == [("", "0"), ("", "1"), ("", "2")]
    assert all(each.size["width"] > 2 for each in page.all("#turns .token")), "they can be seen and chosen"
    restore(page)
    assert shown(page) == [("", "0"), ("", "1"), ("", "2")]


def test_thoughts_come_back(page: Page) -> None:
    answer = Streamed(page)
    trace = {"id": 1, "engine": "small", "entropy": 0.1, "logprob": -0.1}
    answer.push({"delta": {"reasoning_content": "hm"}, "waver": {"trace": [{"token": "hm", **trace}]}})
    answer.send(" one", " one")
    answer.end()
    restore(page)
    assert shown(page) == [("hm", "0"), (" one", "1")]
    assert text_of(page.one("#turns .tokens")) == "hm\n\n one"
    assert len(page.one("#turns article").find_elements(By.CSS_SELECTOR, ".thought")) == 1


def below(page: Page) -> float:
    """Return how many pixels of the page are below the window, once the page has been drawn."""
    drawn = "const done = arguments[arguments.length - 1]; requestAnimationFrame(() => setTimeout(done, 50));"
    page.driver.execute_async_script(drawn)
    return float(page.script("return document.documentElement.scrollHeight - innerHeight - scrollY"))


def test_a_growing_answer_is_followed_until_the_reader_scrolls_up(page: Page) -> None:
    answer = Streamed(page)
    lines = "a line\n" * 60
    for _ in range(3):
        answer.send(lines)
        assert below(page) < 3
    page.script("document.getElementById('context-words').style.lineHeight = '4'")
    assert below(page) < 3, "what stands below the answer grows too"
    page.script("scrollBy(0, -30)")
    where = page.script("return scrollY")
    answer.send(lines)
    assert below(page) > 1000
    assert page.script("return scrollY") == where
    page.script("scrollTo(0, document.documentElement.scrollHeight)")
    below(page)
    answer.send(lines)
    assert below(page) < 3
    page.script("scrollBy(0, -500)")
    below(page)
    where = page.script("return scrollY")
    answer.end()
    below(page)
    assert page.script("return scrollY") == where


def test_the_tools_of_a_long_conversation_stay_in_sight(page: Page) -> None:
    answer = Streamed(page)
    answer.send("a line\n" * 90)
    answer.end()
    edges = "const at = document.querySelector(arguments[0]).getBoundingClientRect(); return [at.top, at.bottom]"
    for width in (1280, 360):
        with page.phone(width):
            page.script("scrollTo(0, document.documentElement.scrollHeight)")
            below(page)
            page.script("scrollBy(0, -300)")
            below(page)
            assert page.sideways() <= 0
            top, bottom = page.script(edges, "#tools")
            assert abs(top - page.script(edges, "header")[1]) < 2
            assert bottom - top < 50, "one line"
            page.accessible()
            if width == 1280:
                continue
            page.one("#open-settings").click()
            below(page)
            assert page.script(edges, "#settings")[0] >= page.script(edges, "header")[1] - 2
            page.one("#open-settings").click()


def test_the_end_of_the_newest_turn_is_not_behind_the_box(page: Page) -> None:
    page.script("document.getElementById('documents').style.height = '8rem'")
    answer = Streamed(page)
    answer.send("a line\n" * 60)
    answer.end()
    page.script("scrollTo(0, document.documentElement.scrollHeight)")
    page.script("window.fetch = () => Promise.reject(new TypeError())")
    page.say("again")
    button = page.wait(lambda: page.one("#turns .error button"))
    below(page)
    ends = "return arguments[0].getBoundingClientRect()"
    edges = page.script(f"{ends}.bottom", button), page.script(f"{ends}.top", page.one("#composer"))
    assert edges[0] <= edges[1]


def test_a_growing_answer_leaves_other_views_alone(page: Page) -> None:
    answer = Streamed(page)
    answer.send("a line\n" * 60)
    below(page)
    page.click("#to-compare")
    page.script("scrollTo(0, 0)")
    answer.send("a line\n" * 60)
    below(page)
    assert page.script("return scrollY") == 0


def threshold(page: Page, where: str) -> str:
    """Return the value of the threshold's control, which has the focus."""
    control = page.driver.switch_to.active_element
    assert control == page.one(f"{where} [role=slider]")
    return control.get_attribute("aria-valuenow") or ""


def test_the_focus_stays_on_a_threshold_that_was_set(page: Page) -> None:
    page.set("#model", "waver/frugal")
    page.set("#max-tokens", 24)
    page.ask("hello")
    page.one("#turns [role=slider]").send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    before = threshold(page, "#turns")
    page.driver.switch_to.active_element.send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.wait(lambda: page.one("#ead-threshold").get_property("value") != before)
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert threshold(page, "#turns") != before


def test_the_focus_stays_on_a_threshold_of_a_comparison(opened: Callable[[str], Page]) -> None:
    page = opened("compare")
    page.set("#compare-tokens", 12)
    page.set("#compare-question", "hello")
    page.click("#compare-run")
    page.wait(lambda: len(page.all("#compare-results .report")) == 3 and page.one("#compare-run").is_displayed())
    page.one("[data-column='1'] [role=slider]").send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.wait(lambda: len(page.all("#compare-results .report")) == 3 and page.one("#compare-run").is_displayed())
    assert threshold(page, "#compare-results [data-column='1']")


def test_a_threshold_of_an_earlier_turn_asks_before_later_ones_go(page: Page) -> None:
    page.set("#model", "waver/frugal")
    page.set("#max-tokens", 24)
    page.ask("hello")
    page.ask("second")
    page.ask("third")
    slider = "#turns article:first-child [role=slider]"
    was = page.one(slider).get_attribute("aria-valuenow")
    page.one(slider).send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    question = page.driver.switch_to.active_element
    assert question.text == "Ask again and drop 2 later turns"
    page.accessible()
    question.send_keys(Keys.ESCAPE)
    assert threshold(page, "#turns article:first-child") == was
    assert question not in page.all("#turns button")
    handle = page.one(slider)
    ActionChains(page.driver).click_and_hold(handle).move_by_offset(0, 60).release().perform()
    assert page.driver.switch_to.active_element.text == "Ask again and drop 2 later turns"
    ActionChains(page.driver).send_keys(Keys.TAB).perform()
    assert page.driver.switch_to.active_element.text == "Keep this answer"
    ActionChains(page.driver).send_keys(Keys.ENTER).perform()
    assert threshold(page, "#turns article:first-child") == was
    assert [each.text for each in page.all(".question")] == ["hello", "second", "third"]
    page.one(slider).send_keys(Keys.ARROW_DOWN, Keys.ENTER)
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    page.wait(lambda: [each.text for each in page.all(".question")] == ["hello"])
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert threshold(page, "#turns") != was


def test_a_reload_keeps_what_has_come_of_a_first_answer(page: Page) -> None:
    answer = Streamed(page)
    answer.send("one ", "one ")
    answer.send("two", "two")
    page.wait(lambda: len(page.all("#turns .token")) == 2)
    restore(page)
    assert page.one(".question").text == "hello"
    assert shown(page) == [("one ", "0"), ("two", "1")]
    assert page.one("#turns .note[role=alert]").text.startswith("Stopped.")
    page.accessible()
    page.set("#max-tokens", 8)
    page.click("#turns .note button")
    page.wait(lambda: page.all("#turns article[aria-busy=false] .report"))
    assert "Stopped." not in page.one("#turns").text


def test_a_reload_that_breaks_the_connection_is_no_error(page: Page) -> None:
    answer = Streamed(page)
    answer.send("one ", "one ")
    page.wait(lambda: page.all("#turns .token"))
    page.script("dispatchEvent(new Event('beforeunload')); window.stream.error(new TypeError('network error'))")
    page.wait(lambda: page.all("#turns article[aria-busy=false]"))
    reload(page)
    assert "An answer was being written" in page.one("#left").text
    page.accessible()
    page.click("#left button")
    assert page.one("#turns .note[role=alert]").text.startswith("Stopped.")
    assert not page.all("#turns .error")
    assert shown(page) == [("one ", "0")]
    reload(page)
    assert not page.one("#left").is_displayed()


def test_the_history_has_dates(page: Page) -> None:
    page.script("localStorage.setItem('waver-conversations', '[]')")
    page.set("#max-tokens", 4)
    page.ask("hello")
    page.click("#history")
    (when,) = page.all("#dialog .chosen time")
    asked = datetime.fromisoformat(when.get_attribute("datetime") or "")
    assert abs(datetime.now(UTC) - asked).total_seconds() < 300
    assert str(asked.year) in when.text
    page.accessible()


def test_a_threshold_that_may_not_act_yet_is_told_in_plain_words(page: Page) -> None:
    answer = Streamed(page)
    held = {"then": "hold", "value": 2, "threshold": 1, "of": "small", "entropy": 2}
    answer.send("one ", "one ", decision={"ead": held})
    answer.send("two", "two")
    answer.end()
    page.one("#turns .tokens").send_keys(Keys.HOME)
    for said in (page.one("#tip").text, text_of(page.one("#status"))):
        assert "the one that writes has to make its first tokens" in said
        assert " hold" not in said


def test_a_comparison_has_one_estimate_and_knows_a_full_context(
    opened: Callable[[str], Page], http: httpx.Client
) -> None:
    page = opened("compare")
    page.set("#compare-question", "hello")
    page.set("#compare-tokens", 99999)
    room = next(each["max_model_len"] for each in http.get("/v1/models").json()["data"] if each["id"] == "small")
    engine = {"parameters": 1, "decoded": 3, "read": 0, "seconds": 1}
    cost = {"full": 1, "against": "large", "engines": {"small": engine}}
    answer = Streamed(page, lambda page: page.click("#compare-run"))
    for seconds in (3, 6):
        answer.wait()
        answer.send("one", "one")
        usage = {"prompt_tokens": room - 10, "completion_tokens": 10}
        answer.finish(usage=usage, waver={**REPORT, "cost": {**cost, "seconds_alone": seconds}})
    page.wait(lambda: len(page.all("#compare-results .report")) == 2)
    said = [text_of(each) for each in page.all("#compare-results .figure:nth-child(2)")]
    estimate = "large alone: about 6.00 s for 3 tokens, estimated from its measured steps of 2.00 s"
    assert [estimate in each for each in said] == [True, True]
    assert ["The conversation is full" in text_of(each) for each in page.all("#compare-results .column")] == [
        True,
        True,
        False,
    ]
    assert "limit of tokens" not in page.one("#compare-results").text
    page.click("#compare-stop")
