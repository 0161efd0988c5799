"""Open every page of the built site in Chromium, from disk and without a network, as a reader would.

`make browser` runs this and leaves a picture of every page, at desktop and phone width, in `_build/screens`.
"""

import itertools
import os
import shutil
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
from playwright.sync_api import sync_playwright

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "book"))
import build  # noqa: E402

SITE = build.SITE
SCREENS = SITE.parent / "screens"
FILES = {path.relative_to(SITE).as_posix() for path in SITE.rglob("*.html")}
# The theme leaves two templates in _static; the site's own index.html only sends on, and has a test of its own.
PAGES = sorted(name for name in FILES - {"index.html"} if not name.startswith("_static/"))
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
DESKTOP, PHONE = 1280, 390
PAGE_LIMIT, SITE_LIMIT = 2_000_000, 60_000_000  # bytes

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium here (Debian: apt-get install chromium)")

HEADINGS = "article :is(h1, h2, h3, h4, h5, h6), .bd-search-container h1"

# Text outside code that still holds TeX: KaTeX did not reach it.
RAW_FORMULAS = r"""() => {
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = [];
    while (walker.nextNode()) {
        const node = walker.currentNode;
        if (node.parentElement.closest("pre, code, script, style, .katex")) continue;
        if (/\$[^$]+\$|\\\(|\\\[/.test(node.data)) found.push(node.data.trim());
    }
    return found;
}"""

# Text whose contrast with what lies behind it is under WCAG AA: 4.5, or 3 for large text.
LOW_CONTRAST = r"""() => {
    const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
    const rgba = colour => {
        canvas.clearRect(0, 0, 1, 1);
        canvas.fillStyle = colour;
        canvas.fillRect(0, 0, 1, 1);
        const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
        return [r, g, b, a / 255];
    };
    const over = (top, under) => [0, 1, 2].map(i => top[i] * top[3] + under[i] * (1 - top[3])).concat(1);
    const light = c => {
        const [r, g, b] = c.slice(0, 3).map(v => (v /= 255) <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
        return 0.2126 * r + 0.7152 * g + 0.0722 * b;
    };
    const behind = element => {
        const layers = [];
        for (let e = element; e; e = e.parentElement) layers.unshift(rgba(getComputedStyle(e).backgroundColor));
        return layers.reduce((under, top) => over(top, under), [255, 255, 255, 1]);
    };
    const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT), found = new Set();
    while (walker.nextNode()) {
        const element = walker.currentNode.parentElement;
        if (!walker.currentNode.data.trim() || element.closest("script, style, .katex-mathml")) continue;
        if (!element.checkVisibility({checkOpacity: true, checkVisibilityCSS: true})) continue;
        const style = getComputedStyle(element), ground = behind(element), text = over(rgba(style.color), ground);
        const [high, low] = [light(text), light(ground)].sort((a, b) => b - a);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && style.fontWeight >= 700);
        const ratio = (high + 0.05) / (low + 0.05);
        if (ratio < (large ? 3 : 4.5))
            found.add(`${ratio.toFixed(2)}: "${walker.currentNode.data.trim().slice(0, 40)}" ` +
                      `(${element.tagName}.${element.className}) ${style.color}`);
    }
    return [...found];
}"""


@pytest.fixture(scope="module")
def chromium():
    arguments = ["--disable-background-networking", "--disable-component-update", "--no-first-run", "--disable-gpu"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        arguments.append("--no-sandbox")  # Chromium refuses its sandbox to root, as in a container
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=BROWSER, args=arguments)
        yield browser
        browser.close()


class Reader:
    """One page being read, and everything that went wrong while it was."""

    def __init__(self, browser, width: int, colours: str = "light"):
        self.context = browser.new_context(viewport={"width": width, "height": 900}, offline=True, color_scheme=colours)
        self.context.set_default_timeout(120_000)  # milliseconds: a busy machine is slow to draw a long page
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.page.on("console", lambda line: self.note(line.type == "error", f"console: {line.text}"))
        self.page.on("pageerror", lambda error: self.note(True, f"script: {error}"))
        self.page.on("requestfailed", lambda request: self.note(True, f"failed: {request.url}"))
        self.page.on("request", lambda request: self.note(request.url.startswith("http"), f"asked: {request.url}"))
        self.files: set[Path] = set()
        self.page.on("request", lambda request: self.files.add(Path(unquote(urlsplit(request.url).path))))

    def note(self, wrong: bool, text: str) -> None:
        if wrong:
            self.complaints.append(text)

    def open(self, path: str, query: str = "") -> None:
        self.page.goto((SITE / path).as_uri() + query)
        self.page.wait_for_load_state("load")
        # The theme fades from one colour to another; half way there is nothing that a reader reads.
        self.page.evaluate("() => document.getAnimations().forEach(a => a instanceof CSSTransition && a.finish())")

    def weight(self) -> int:
        """The bytes of all files that the pages opened so far have asked for, as they lie on disk."""
        return sum(file.stat().st_size for file in self.files if file.is_file())

    def picture(self, name: str) -> None:
        SCREENS.mkdir(parents=True, exist_ok=True)
        self.page.screenshot(path=SCREENS / f"{name}.png", full_page=True)


@pytest.fixture
def reader(chromium):
    readers = []

    def new(width=DESKTOP, colours="light"):
        readers.append(Reader(chromium, width, colours))
        return readers[-1]

    yield new
    for one in readers:
        one.context.close()


def test_there_is_a_site():
    assert "chapters/index.html" in PAGES and "search.html" in PAGES


def test_the_site_is_small():
    assert sum(file.stat().st_size for file in SITE.rglob("*") if file.is_file()) < SITE_LIMIT


def test_the_folder_opens_at_the_book(reader):
    page = reader().page
    page.goto((SITE / "index.html").as_uri())
    page.wait_for_url("**/chapters/index.html")


@pytest.mark.parametrize("width", [DESKTOP, PHONE])
@pytest.mark.parametrize("path", PAGES)
def test_page(reader, path, width):
    one = reader(width)
    one.open(path)
    one.picture(f"{path.removesuffix('.html').replace('/', '-')}-{width}")
    page = one.page
    assert one.complaints == []
    assert page.evaluate(RAW_FORMULAS) == [], "formulas that were not rendered"
    assert page.locator(".math:not(:has(.katex))").count() == 0, "formulas that were not rendered"
    assert page.locator(".katex-error").all_inner_texts() == [], "formulas that KaTeX cannot read"
    broken = "images => images.filter(i => !i.complete || !i.naturalWidth || !i.alt.trim()).map(i => i.src)"
    assert page.locator("img").evaluate_all(broken) == [], "images that did not load or have no alternative text"
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "the page scrolls sideways"
    assert one.weight() < PAGE_LIMIT
    levels = page.locator(HEADINGS).evaluate_all("all => all.filter(h => h.checkVisibility()).map(h => +h.tagName[1])")
    assert levels[0] == 1 and levels.count(1) == 1
    assert all(below <= above + 1 for above, below in itertools.pairwise(levels)), f"a level is left out: {levels}"
    assert set(page.locator("a[href*='colab.']").evaluate_all("all => all.map(a => a.href)")) == colab_links(path)


@pytest.mark.parametrize("width", [DESKTOP, 1440])
def test_a_long_line_of_code_fits(reader, width):
    one = reader(width)
    one.open("chapters/01_oracle.html")
    code = one.page.locator(".cell_input pre").first
    assert code.evaluate("pre => { pre.textContent = 'x'.repeat(120); return pre.scrollWidth <= pre.clientWidth }")


def test_the_contents_of_a_page_are_a_click_away_on_a_small_laptop(reader):
    one = reader(DESKTOP)
    one.open("chapters/01_oracle.html")
    link = one.page.locator("dialog a[href='#the-grade']")
    assert not link.is_visible()
    one.page.locator("button.secondary-toggle").click()
    link.wait_for()


def colab_links(path: str) -> set[str]:
    """Where the badge and the theme's menu must lead: to the page's own notebook, if it has one."""
    notebook = Path(path).with_suffix(".ipynb")
    start = build.repository().replace("https://github.com", "https://colab.research.google.com/github") + "/blob/main/"
    return {start + notebook.as_posix()} if (build.ROOT / notebook).exists() else set()


@pytest.mark.parametrize("colours", ["light", "dark"])
@pytest.mark.parametrize("path", PAGES)
def test_contrast(reader, path, colours):
    one = reader(colours=colours)
    one.open(path)
    if path == "chapters/index.html" or colours == "dark":
        one.picture(f"{path.removesuffix('.html').replace('/', '-')}-{colours}")
    assert one.page.evaluate(LOW_CONTRAST) == []


@pytest.mark.parametrize("word", ["roll-out", "oracle"])
def test_search(reader, word):
    one = reader()
    one.open("search.html", f"?q={word}")
    results = one.page.locator("#search-results ul.search li a")
    results.first.wait_for()
    assert results.count() >= 1
    assert one.complaints == []
    results.first.click()
    one.page.wait_for_load_state("load")
    assert word.partition("-")[0] in one.page.locator("article").inner_text().lower()


def test_previous_and_next_walk_the_whole_book(reader):
    one = reader()
    one.open("chapters/index.html")
    seen = {Path(one.page.url.partition("#")[0]).stem}
    while one.page.locator("a.right-next").count():
        one.page.locator("a.right-next").first.click()
        one.page.wait_for_load_state("load")
        seen.add(Path(one.page.url.partition("#")[0]).stem)
    assert seen == {Path(path).stem for path in PAGES if path.startswith("chapters/")}
    assert one.complaints == []


def test_links_inside_the_site_resolve(reader):
    """Every link to a page of the site, and every anchor in it, exists."""
    one = reader()
    anchors, links = {}, set()
    for path in PAGES:
        one.open(path)
        anchors[(SITE / path).as_uri()] = set(one.page.locator("[id]").evaluate_all("all => all.map(e => e.id)"))
        links |= set(one.page.locator("a[href]").evaluate_all("all => all.map(a => a.href)"))
    inside = [link.partition("#") for link in links if link.startswith("file:")]
    missing = [
        page + hash_ + anchor
        for page, hash_, anchor in inside
        if page not in anchors or (anchor and anchor not in anchors[page])
    ]
    assert missing == []
