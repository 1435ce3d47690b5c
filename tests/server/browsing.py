"""The page in a real browser, as a person uses it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.wait import WebDriverWait

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = pytest.mark.skipif(
    not (CHROMIUM and DRIVER), reason="no browser: apt-get install chromium chromium-driver"
)
FLAGS = """--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking
--disable-component-update --disable-sync --window-size=1280,900 --force-prefers-reduced-motion""".split()
AXE = (Path(__file__).parent / "vendor" / "axe.min.js").read_text()
VIOLATIONS = """
const done = arguments[arguments.length - 1];
const said = (each) => [each.id, each.nodes.map((node) => node.html + node.failureSummary)];
axe.run().then(({violations}) => done(violations.map(said)));
"""


def launch(profile: Path) -> Chrome:
    """Start a browser that keeps what the console says."""
    options = webdriver.ChromeOptions()
    for flag in [*FLAGS, f"--user-data-dir={profile}"]:
        options.add_argument(flag)
    options.binary_location = CHROMIUM or ""
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(DRIVER))


class Page:
    """One view of the page."""

    def __init__(self, driver: Chrome, url: str, view: str = "chat") -> None:
        self.driver, self.url = driver, url
        driver.get("about:blank")
        driver.get(f"{url}#{view}")
        self.wait(lambda: self.all("body[data-ready]") or self.one("#key").is_displayed())

    def wait(self, condition: Callable[[], Any], seconds: float = 60) -> Any:
        """Wait until the condition holds; what the page drew anew while it was read is read again."""
        drawn_anew = [StaleElementReferenceException]
        return WebDriverWait(self.driver, seconds, 0.05, drawn_anew).until(lambda _: condition())

    def one(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def script(self, code: str, *given: Any) -> Any:
        return self.driver.execute_script(code, *given)

    def set(self, selector: str, value: object) -> None:
        """Set an input's or a select's value and send the events that a person's change sends."""
        self.script(
            "arguments[0].value = arguments[1]; for (const kind of ['input', 'change']) "
            "arguments[0].dispatchEvent(new Event(kind, {bubbles: true}))",
            self.one(selector),
            str(value),
        )

    def click(self, selector: str) -> None:
        """Click on what may be out of sight or below something, once it is there."""

        def clicked() -> bool:
            for found in self.all(selector)[:1]:
                self.script("arguments[0].click()", found)
                return True
            return False

        self.wait(clicked)

    def say(self, text: str) -> None:
        self.one("#message").send_keys(text + Keys.ENTER)

    def ask(self, text: str) -> WebElement:
        """Say it and wait for the end of the answer."""
        before = len(self.all("#turns article"))
        self.say(text)
        self.wait(lambda: len(self.all("#turns article[aria-busy=false]")) > before)
        return self.all("#turns article")[-1]

    @contextmanager
    def phone(self, width: int) -> Iterator[None]:
        """Let the window be a phone's for the while, so many pixels wide."""
        size = {"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
        try:
            yield
        finally:
            self.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})

    def sideways(self) -> int:
        """Return by how many pixels the page is wider than its window."""
        return int(
            self.script("return document.documentElement.scrollWidth - visualViewport.width * visualViewport.scale")
        )

    def accessible(self) -> None:
        """Check that axe finds no violation."""
        if not self.script("return 'axe' in window"):
            self.script(AXE)
        found = self.driver.execute_async_script(VIOLATIONS)
        assert found == [], found


def text_of(element: WebElement) -> str:
    return str(element.get_property("textContent"))
