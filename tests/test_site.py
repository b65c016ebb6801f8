"""The site as its readers have it: built strictly, every link and anchor there, every page in a browser."""

import functools
import threading
from collections import defaultdict
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urljoin, urlsplit

import mkdocs.commands.build
import mkdocs.config
import pytest
import yaml

ROOT = Path(__file__).parent.parent
HOST = "http://site"


class Document(HTMLParser):
    """What a page links to and what can be linked to in it."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.links: set[str] = set()
        self.anchors: set[str] = set()
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.anchors |= {found[key] for key in ("id", "name") if found.get(key)}
        self.links |= {found[key] for key in ("href", "src") if found.get(key)}


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """Build the site; a warning is an error."""
    folder = tmp_path_factory.mktemp("site")
    config = mkdocs.config.load_config(str(ROOT / "mkdocs.yml"), site_dir=str(folder), strict=True)
    mkdocs.commands.build.build(config)
    return folder


@pytest.fixture(scope="module")
def address(site):
    """Serve the site on this machine."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=site))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


def addresses(site):
    """Return the address of every page, from the site's root."""
    pages = (path.relative_to(site).parent.as_posix() for path in site.rglob("index.html"))
    return sorted("/" if page == "." else f"/{page}/" for page in pages)


def test_every_page_is_in_the_navigation():
    def files(entry):
        if isinstance(entry, str):
            return {entry}
        return set().union(*(files(inner) for inner in (entry.values() if isinstance(entry, dict) else entry)))

    pages = {page.relative_to(ROOT / "docs").as_posix() for page in (ROOT / "docs").rglob("*.md")}
    assert files(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]) == pages


def test_every_link_leads_to_a_page_and_a_place_in_it(site):
    documents = {page: Document(site / page.strip("/") / "index.html") for page in addresses(site)}
    broken = defaultdict(list)
    for page, document in documents.items():
        for link in document.links:
            address = urlsplit(urljoin(HOST + page, link))
            if f"{address.scheme}://{address.netloc}" != HOST:
                continue
            target, anchor = unquote(address.path), unquote(address.fragment)
            if target in documents:
                if anchor and anchor not in documents[target].anchors:
                    broken[page].append(link)
            elif not (site / target.lstrip("/")).is_file():
                broken[page].append(link)
    assert len(documents) > 30
    assert not broken


@pytest.fixture(scope="module")
def open_page(browser, address):
    """Open a page of a width and a colour scheme without a network; return it with all that it complained of."""
    contexts = []

    def run(page, width=1280, scheme="light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)
        contexts.append(context)
        tab, complaints = context.new_page(), []
        tab.set_default_timeout(10_000)
        tab.route(lambda url: not url.startswith(address), lambda route: route.abort())
        tab.on("console", lambda message: message.type in ("error", "warning") and complaints.append(message.text))
        tab.on("pageerror", lambda error: complaints.append(str(error)))
        # What was under way when the next page was asked for is aborted.
        tab.on("requestfailed", lambda call: call.failure == "net::ERR_ABORTED" or complaints.append(call.url))
        tab.goto(address + page)
        return tab, complaints

    yield run
    for context in contexts:
        context.close()


WIDTHS = (1280, 400)


def test_every_page_opens_without_complaint_and_fits(site, open_page, address):
    playwright = pytest.importorskip("playwright.sync_api")
    tab, complaints = open_page("/404.html")
    for page in addresses(site):
        tab.goto(address + page)
        broken = tab.eval_on_selector_all(
            "img", "images => Promise.all(images.map(image => { image.loading = 'eager'; return image.decode()"
            ".then(() => null, () => image.src); })).then(all => all.filter(Boolean))"
        )  # fmt: skip
        assert not broken, page
        for width in WIDTHS:
            tab.set_viewport_size({"width": width, "height": 900})
            try:  # once what moves has come to rest
                tab.wait_for_function("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
            except playwright.TimeoutError:
                pytest.fail(f"{page} is wider than {width} pixels")
            text = tab.locator(".md-content p, .md-content li").first
            assert float(text.evaluate("each => getComputedStyle(each).fontSize").removesuffix("px")) >= 14, page
        assert not complaints, page


@pytest.mark.parametrize("width", WIDTHS)
def test_the_search_finds_a_network(open_page, width):
    tab, complaints = open_page("/", width)
    if width == 400:
        tab.locator("label[for=__search]").first.click()
    tab.locator(".md-search__input").press_sequentially("fcn8s")
    tab.locator(".md-search-result__link").first.wait_for()
    found = tab.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
    assert any("which-network" in link or "networks" in link or "explained/fcn" in link for link in found)
    assert not complaints


def test_a_page_that_warns_is_not_built(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/index.md").write_text("[nowhere](nowhere.md)")
    (tmp_path / "mkdocs.yml").write_text("site_name: test\nstrict: true\nplugins: []\n")
    config = mkdocs.config.load_config(str(tmp_path / "mkdocs.yml"), site_dir=str(tmp_path / "site"))
    with pytest.raises(SystemExit):
        mkdocs.commands.build.build(config)
