"""Take the page's screenshots from a running server of the bundled pair, in light, in dark and as a phone shows it.

waver serve &
python docs/screenshots.py --url http://127.0.0.1:8000
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from selenium import webdriver
from selenium.webdriver import Chrome, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

SIZES = {"light": (1280, 900), "dark": (1280, 900), "phone": (390, 844)}
QUESTION = "#examples li:nth-child(2) button"


def browser(size: tuple[int, int], dark: bool) -> Chrome:
    options = webdriver.ChromeOptions()
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"):
        options.add_argument(flag)
    options.binary_location = shutil.which("chromium") or ""
    driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1.5, "mobile": size[0] < 600}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    still = {"name": "prefers-reduced-motion", "value": "reduce"}
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme, still]})
    return driver


def until(driver: Chrome, condition: Callable[[Chrome], Any]) -> None:
    WebDriverWait(driver, 120, 0.1).until(condition)


def take(driver: Chrome, url: str, out: Path, name: str) -> None:
    """Take the pictures of every view."""
    driver.get(url)
    until(driver, lambda each: each.find_elements(By.CSS_SELECTOR, "body[data-ready]"))
    driver.save_screenshot(str(out / f"compare-{name}.png"))
    driver.get(f"{url}#chat")
    until(driver, lambda each: each.find_element(By.CSS_SELECTOR, QUESTION).is_displayed())
    driver.find_element(By.CSS_SELECTOR, QUESTION).click()
    until(driver, lambda each: each.find_elements(By.CSS_SELECTOR, "article[aria-busy=false] .report"))
    words = driver.find_element(By.CSS_SELECTOR, "#chat .tokens")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", words)
    for _ in range(6):
        words.send_keys(Keys.ARROW_RIGHT)
    driver.save_screenshot(str(out / f"chat-{name}.png"))


def main(
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    out: Annotated[Path, typer.Option(help="Folder for the pictures.")] = Path("docs/screenshots"),
) -> None:
    """Take the page's screenshots."""
    out.mkdir(parents=True, exist_ok=True)
    for name, size in SIZES.items():
        driver = browser(size, dark=name == "dark")
        try:
            take(driver, url.rstrip("/") + "/", out, name)
        finally:
            driver.quit()


if __name__ == "__main__":
    typer.run(main)
