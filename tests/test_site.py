"""The documentation site builds without a warning, and its pages need no other server."""

import html.parser
import os
import pathlib
import re
import subprocess
import sys
import zlib

import pytest

import reference
from backend_independent import backend_independent

pytestmark = backend_independent

# Links that a reader may follow; nothing of them is fetched to show a page.
FETCHED = {"script": "src", "img": "src", "iframe": "src", "source": "src", "use": "href"}


class Page(html.parser.HTMLParser):
    """The addresses that a browser fetches with a page, and the ids in it."""

    def __init__(self, text):
        super().__init__()
        self.fetched, self.ids, self.drawings, self.texts = [], set(), 0, []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        self.ids.add(attributes.get("id"))
        self.drawings += tag == "svg" and "drawing" in (attributes.get("class") or "").split()
        address = attributes.get(FETCHED.get(tag, ""))
        if tag == "link" and attributes.get("rel") not in ("canonical", "prev", "next"):
            address = attributes.get("href")
        if address:
            self.fetched.append(address)

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site, which is built once."""
    folder = tmp_path_factory.mktemp("site")
    # The note of mkdocs-material is about mkdocs itself, and nothing in these pages.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    # With --quiet mkdocs would count no warnings, and --strict would be for nothing.
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(folder)]
    done = subprocess.run(
        command, cwd=reference.ROOT, env=environment, capture_output=True, text=True
    )
    output = done.stdout + done.stderr
    assert done.returncode == 0 and "WARNING" not in output and "ERROR" not in output, output
    return folder


@pytest.fixture(scope="module")
def pages(site):
    """Every page by its path in the site, a dict of `Page`."""
    return {
        path.relative_to(site).as_posix(): Page(path.read_text(encoding="utf-8"))
        for path in site.rglob("*.html")
    }


def test_pages_fetch_nothing_from_elsewhere(site, pages):
    assert len(pages) > 40
    for path, page in pages.items():
        assert page.fetched, path
        for address in page.fetched:
            assert "//" not in address, (path, address)
            name = address.partition("?")[0].partition("#")[0]
            # The page of errors may lie anywhere, so its addresses begin at the root.
            root = site if name.startswith("/") or path == "404.html" else (site / path).parent
            assert (root / name.lstrip("/")).resolve().is_file(), (path, address)


def test_every_public_name_has_an_anchor(site, pages):
    anchors = {x for path, page in pages.items() if path.startswith("reference/") for x in page.ids}
    objects, members = reference.public()
    assert [x for x in [*objects, *members] if x not in anchors] == []
    # Other sites link to them by this file.
    lines = (site / "objects.inv").read_bytes().split(b"\n", 4)[4]
    inventory = {line.split(" ")[0] for line in zlib.decompress(lines).decode().splitlines()}
    assert {*objects, *members} <= inventory


def test_drawings_are_parts_of_their_pages(pages):
    drawn = sorted(pathlib.Path(reference.ROOT, "docs", "drawings").glob("*.svg"))
    assert len(drawn) >= 5
    assert sum(page.drawings for page in pages.values()) == len(drawn)


def test_no_markup_is_left_over(pages):
    for path, page in pages.items():
        text = "".join(page.texts)
        marks = ("\0",) if path == "CONTRIBUTING.html" else ("```", "<!--", "\0")  # it names marks
        assert not any(mark in text for mark in marks), path


def test_every_page_of_figures_is_linked():
    text = (reference.ROOT / "docs" / "figures.md").read_text(encoding="utf-8")
    names = {path.name for path in reference.ROOT.glob("benchmarks/*.md")}
    assert {name for name in names if f"](../benchmarks/{name})" not in text} == set()


def test_tests_that_pages_name_are_there():
    text = (reference.ROOT / "docs" / "numerics.md").read_text(encoding="utf-8")
    named = re.findall(r"`([\w/]+\.py)::(\w+)`", text)
    assert len(named) > 30
    for path, name in named:
        code = (reference.ROOT / "tests" / path).read_text(encoding="utf-8")
        assert re.search(rf"^def {name}\(", code, re.M), (path, name)
