"""A real browser for tests of pages."""

from __future__ import annotations

import importlib.util
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")

needs_browser = pytest.mark.skipif(
    not (CHROMIUM and DRIVER and importlib.util.find_spec("selenium")),
    reason="chromium, chromedriver or selenium is not installed",
)

ARGUMENTS = """
--headless=new --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-dev-shm-usage
--disable-background-networking --disable-component-update --disable-sync --mute-audio
""".split()

Browser = Any


@contextmanager
def open_browser(profile: Path, **logs: str) -> Iterator[Browser]:
    """A browser with its own profile; `logs` are the kinds that it keeps, and their levels."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = CHROMIUM
    for argument in (*ARGUMENTS, f"--user-data-dir={profile}"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", logs)
    # The driver is named, so that selenium does not look for one on the network.
    service = webdriver.ChromeService(executable_path=DRIVER)
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_script_timeout(20)
    yield driver
    driver.quit()


def set_size(browser: Browser, width: int, height: int = 1000) -> None:
    """Make the window so large; a narrow one is a telephone's."""
    size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 400}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def set_scheme(browser: Browser, scheme: str, forced: str = "none") -> None:
    """Have the page drawn for "light" or "dark"; if `forced` is "active", in the user's colours."""
    values = {"prefers-color-scheme": scheme, "forced-colors": forced}
    features = [{"name": name, "value": value} for name, value in values.items()]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def contrasts(browser: Browser) -> list[tuple[float, str]]:
    """The contrast of each text of the page with what is behind it, and which element it is."""
    return [(ratio, kind) for ratio, kind in browser.execute_script(_CONTRAST)]


_CONTRAST = """
const numbers = (colour) => colour.match(/[\\d.]+/g).map(Number);
const lightness = ([r, g, b]) => [r, g, b].map((v) => v / 255)
  .map((v) => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
const behind = (element) => {
  for (let each = element; each; each = each.parentElement) {
    const colour = numbers(getComputedStyle(each).backgroundColor);
    if (colour.length < 4 || colour[3] > 0) return colour;
  }
};
const texts = [...document.querySelectorAll("body *")].filter((element) =>
  [...element.childNodes].some((node) => node.nodeType === 3 && node.data.trim())
  && element.checkVisibility() && !element.closest("script, title"));
return texts.map((element) => {
  const style = getComputedStyle(element);
  const ink = numbers(element.closest("svg") ? style.fill : style.color);
  const [a, b] = [lightness(ink), lightness(behind(element))].sort((x, y) => y - x);
  return [(a + 0.05) / (b + 0.05), element.tagName + "." + (element.getAttribute("class") || "")];
});
"""
