"""The page in a real browser: sounds, pictures, sorting, names, widths, contrast."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from urllib.parse import quote

import numpy as np
import pytest

from mcspex_cli import audio
from mcspex_cli.evaluation.comparison import PageSettings, read_systems
from mcspex_cli.evaluation.page import write_page
from mcspex_cli.evaluation.report import read_groups
from tests.browser import Browser, contrasts, needs_browser, open_browser, set_scheme, set_size
from tests.evaluation.conftest import stage

pytestmark = needs_browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with open_browser(tmp_path_factory.mktemp("profile"), browser="ALL") as browser:
        yield browser


HOSTILE = ["<img src=x onerror=alert(1)>", '"><svg onload=alert(2)>', "50% #1 ünï 日本 'q'", "d/e"]
LABEL = "</title><script>alert(3)</script>"


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Cases with hostile names, one output missing, one broken, one silent."""
    folder = stage(tmp_path_factory.mktemp("scene"), [*HOSTILE, "x" * 90, "f"])
    (folder / "bad" / "f.wav").write_bytes(b"no sound")
    (folder / "good" / "f.wav").unlink()
    audio.write(folder / "good" / "d" / "e.wav", 0 * audio.read(folder / "truth/f.wav", 8000), 8000)
    rows = [f'"{name.replace(chr(34), chr(34) * 2)}",{LABEL}' for name in HOSTILE[:3]]
    (folder / "groups.csv").write_text("\n".join(["id,group", *rows]), "utf-8")
    return folder


def make(scene: Path, name: str, *, embed: bool) -> str:
    """Write the page; its address."""
    runs = read_systems([f"{LABEL}={scene / 'good'}", f"{'long ' * 12}={scene / 'bad'}"])
    settings = PageSettings(
        scene / "truth",
        scene / "mixtures",
        read_groups(scene / "groups.csv"),
        embed=embed,
        title=LABEL,
    )
    page = write_page(runs, scene / name, settings).path
    return f"file://{quote(str(page))}"


@pytest.fixture(scope="module")
def address(scene: Path) -> str:
    return make(scene, "page.html", embed=True)


def show(browser: Browser, address: str, width: int = 1280, scheme: str = "light") -> None:
    set_scheme(browser, scheme)
    set_size(browser, width)
    browser.get_log("browser")
    browser.get(address)


LOADED = """
const done = arguments[arguments.length - 1];
const sound = (player) => new Promise((resolve) => {
  player.addEventListener("loadedmetadata", () => resolve(player.duration));
  player.addEventListener("error", () => resolve(-1));
  if (player.readyState > 0) resolve(player.duration);
  else { player.preload = "metadata"; player.load(); }
});
const picture = async (image) => {
  image.loading = "eager";
  await image.decode().catch(() => {});
  return [image.naturalWidth, image.naturalHeight, image.alt];
};
Promise.all([
  Promise.all([...document.querySelectorAll("audio")].map(sound)),
  Promise.all([...document.images].map(picture)),
]).then(done);
"""


@pytest.mark.parametrize("name", ["page.html", "beside.html", "50% #1? a:b 'q' ü.html"])
def test_every_sound_plays_and_every_picture_shows(
    browser: Browser, scene: Path, address: str, name: str
) -> None:
    beside = name != "page.html"
    show(browser, make(scene, name, embed=False) if beside else address)
    durations, pictures = browser.execute_async_script(LOADED)
    assert len(durations) == 6 * 4 - 2
    assert durations == pytest.approx([0.5] * len(durations), abs=0.05)
    assert len(pictures) == len(durations) + 1
    for wide, high, alt in pictures:
        assert wide > 0
        assert high > 0
        assert alt
    assert browser.get_log("browser") == []


def test_names_do_nothing(browser: Browser, address: str) -> None:
    show(browser, address)
    count = "return document.querySelectorAll(arguments[0]).length"
    assert browser.execute_script(count, "script") == 1
    assert browser.execute_script(count, "[onerror], [onload], img[src='x']") == 0
    titles = browser.execute_script(
        "return [...document.querySelectorAll('.title')].map((each) => each.textContent)"
    )
    assert titles[:3] == HOSTILE[:3]
    assert browser.title == LABEL
    with pytest.raises(Exception, match="no such alert"):
        browser.switch_to.alert.accept()


def test_the_policy_stops_what_would_get_in(browser: Browser, address: str) -> None:
    show(browser, address)
    browser.execute_script(
        "document.body.insertAdjacentHTML('beforeend', "
        "'<img id=in src=data:, onerror=\"window.got = 1\"><img src=https://example.org/a.png>')"
    )
    browser.execute_async_script("setTimeout(arguments[0], 200)")
    assert browser.execute_script("return window.got") is None
    refused = [entry["message"] for entry in browser.get_log("browser")]
    assert any("img-src" in message for message in refused)
    assert any("script-src" in message for message in refused)


COLUMN = """
const rows = [...document.querySelectorAll("#scores tbody tr")];
return rows.map((row) => row.cells[arguments[0]].dataset.value);
"""


def test_tables_sort_by_click_and_by_key(browser: Browser, address: str) -> None:
    from selenium.webdriver.common.keys import Keys

    show(browser, address)
    browser.execute_script("document.querySelector('details').open = true")
    heads = browser.find_elements("css selector", "#scores thead tr:last-child th")
    values = [float(v) for v in browser.execute_script(COLUMN, 2)]
    button = heads[2].find_element("tag name", "button")
    for act, order in (
        (button.click, "descending"),
        (lambda: button.send_keys(Keys.ENTER), "ascending"),
        (lambda: button.send_keys(Keys.SPACE), "descending"),
    ):
        act()
        assert heads[2].get_attribute("aria-sort") == order
        found = [float(v) for v in browser.execute_script(COLUMN, 2)]
        assert found == sorted(values, reverse=order == "descending")
    assert heads[0].get_attribute("aria-sort") == "none"
    for _ in range(2):  # what is missing stays at the end
        heads[3].find_element("tag name", "button").click()
        assert browser.execute_script(COLUMN, 3)[-2:] == ["", ""]
        assert "" not in browser.execute_script(COLUMN, 3)[:-2]
    heads[0].find_element("tag name", "button").click()
    assert heads[0].get_attribute("aria-sort") == "ascending"
    assert browser.get_log("browser") == []


def test_a_point_leads_to_its_case(browser: Browser, address: str) -> None:
    show(browser, address)
    links = browser.find_elements("css selector", ".plot a")
    assert len(links) == 9
    target = browser.execute_script("return arguments[0].href.baseVal.slice(1)", links[0])
    name = links[0].find_element("tag name", "title").get_attribute("textContent")
    title = browser.find_element("css selector", f"#{target} .title").text
    assert title in name


TICKS = """
return [...document.querySelectorAll(`.plot text.${arguments[0]}`)].map(
  (tick) => [tick.textContent, tick.getAttribute(arguments[0])]);
"""

POINTS = """
return [...document.querySelectorAll(".plot .point")].map(
  (point) => [point.dataset[arguments[0]], point.getAttribute("transform")]);
"""


def test_points_are_at_their_values_between_round_ticks(browser: Browser, address: str) -> None:
    show(browser, address)
    for name, number in (("x", 0), ("y", 1)):
        places = browser.execute_script(TICKS, name)
        values, pixels = (
            [float(part.replace("−", "-")) for part in parts] for parts in zip(*places, strict=True)
        )
        assert 2 <= len(values) <= 9
        steps = np.diff(values)
        assert steps == pytest.approx(steps[0])
        assert f"{steps[0]:e}"[0] in "125"
        scale, offset = np.polyfit(values, pixels, 1)
        for value, transform in browser.execute_script(POINTS, name):
            place = float(re.findall(r"-?[\d.]+", transform)[number])
            shift = 4 if name == "y" else 0  # of a tick's text
            assert place == pytest.approx(float(value) * scale + offset - shift, abs=0.01)
            assert (56 < place < 628) if name == "x" else (32 < place < 344)


TEXTS = """
return [...document.querySelectorAll(".plot text")].filter((text) => text.checkVisibility())
  .map((text) => [text.textContent, text.getBoundingClientRect()])
  .map(([name, box]) => [name, box.left, box.right, box.top, box.bottom]);
"""


@pytest.mark.parametrize("width", [390, 1280])
def test_no_text_of_the_plot_lies_on_another(browser: Browser, address: str, width: int) -> None:
    show(browser, address, width)
    texts = browser.execute_script(TEXTS)
    assert {"SI-SDRi (dB)", "SI-SDR of the mixture (dB)"} < {name for name, *_ in texts}
    for (one, *a), (other, *b) in combinations(texts, 2):
        apart = a[1] <= b[0] or b[1] <= a[0] or a[3] <= b[2] or b[3] <= a[2]
        assert apart, (one, other)


@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out(browser: Browser, address: str, width: int) -> None:
    show(browser, address, width)
    browser.execute_script("document.querySelector('details').open = true")
    inner, page = browser.execute_script(
        "return [innerWidth, document.documentElement.scrollWidth]"
    )
    assert inner == width
    assert page <= width
    cells = browser.execute_script(
        "return [...document.querySelectorAll('.cell')].slice(0, 2).map("
        "(cell) => cell.getBoundingClientRect().top)"
    )
    assert (cells[0] < cells[1]) == (width < 600)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_all_text_has_contrast(browser: Browser, address: str, scheme: str) -> None:
    show(browser, address, scheme=scheme)
    browser.execute_script("document.querySelector('details').open = true")
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    assert (int(re.findall(r"\d+", paper)[0]) > 128) == (scheme == "light")
    ratios = contrasts(browser)
    kinds = {kind for _, kind in ratios}
    assert {"P.muted", "P.verdict", "P.none", "text.name", "DD."} <= kinds
    assert [(ratio, kind) for ratio, kind in ratios if ratio < 4.5] == []
