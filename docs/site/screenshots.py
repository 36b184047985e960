"""Takes pictures of the site in a browser, and measures its pages: width and contrast.

    apt-get install chromium && pip install playwright
    python -m mkdocs build && python docs/site/screenshots.py

Opens the main pages at 390 and 1280 pixels, light and dark. On each, nothing may be wider than the
window but what scrolls in a box of its own, and every text, those in drawings and plots included,
must have a contrast of 4.5 with what is behind it (WCAG 2.1, 1.4.3, the ratio for small text). It
prints what fails and returns 1 then. Look at the pictures, too: no number says that they are good.
"""

import argparse
import functools
import http.server
import pathlib
import sys
import threading

from playwright.sync_api import sync_playwright

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
PAGES = (
    "index",
    "install",
    "generation",
    "state",
    "finetuning",
    "data",
    "checkpoints",
    "migration",
    "evaluation",
    "sharing",
    "errors",
    "model_cards",
    "verify",
    "devices",
    "what_fits",
    "speed",
    "figures",
    "architecture",
    "numerics",
    "reference/index",
    "reference/causal_lm",
    "reference/command_line",
    "benchmarks/length",
    "examples/lora",
    "examples/notebooks/quickstart",
)
WIDTHS = (390, 1280)
SCHEMES = ("light", "dark")
CONTRAST = 4.5

# Elements that reach beyond the window, and are in no box that scrolls.
WIDE = """() => {
  const scrolls = x => x && (/auto|scroll|hidden/.test(getComputedStyle(x).overflowX)
    || scrolls(x.parentElement));
  const wide = [...document.querySelectorAll('.md-content *, .md-header *, .md-footer *')]
    .filter(x => x.checkVisibility() && x.getBoundingClientRect().right > innerWidth + 1
      && !scrolls(x.parentElement))
    .map(x => x.tagName + ' ' + x.className + ': ' + x.textContent.trim().slice(0, 40));
  const page = document.documentElement.scrollWidth;
  return page > innerWidth ? ['the page: ' + page + ' pixels', ...wide] : wide;
}"""

# Texts with their ratio to what is behind them, where it is below the bound.
PALE = """bound => {
  const canvas = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
  const read = color => {  // any CSS colour as red, green, blue, alpha
    canvas.clearRect(0, 0, 1, 1);
    canvas.fillStyle = color;
    canvas.fillRect(0, 0, 1, 1);
    const [r, g, b, a] = canvas.getImageData(0, 0, 1, 1).data;
    return [r, g, b, a / 255];
  };
  const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3]));
  const light = rgb => {
    const [r, g, b] = rgb.map(x => x / 255).map(
      x => x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = x => {  // the colour of the boxes that an element lies on
    const layers = [];
    for (; x; x = x.parentElement) layers.push(read(getComputedStyle(x).backgroundColor));
    return layers.reverse().reduce((below, top) => over(top, below), [255, 255, 255]);
  };
  const shape = x => {  // the shape of a drawing under the middle of a text, or null
    const box = x.getBoundingClientRect(), svg = x.ownerSVGElement;
    const [left, top] = [box.x + box.width / 2, box.y + box.height / 2];
    return [...svg.querySelectorAll('rect, circle')].reverse().find(y => {
      const other = y.getBoundingClientRect();
      return getComputedStyle(y).fill !== 'none' && other.left <= left && left <= other.right
        && other.top <= top && top <= other.bottom;
    });
  };
  const found = [];
  const check = (x, color, below, words) => {
    let alpha = 1;
    for (let y = x; y; y = y.parentElement) alpha *= getComputedStyle(y).opacity;
    const ink = read(color);
    const lights = [light(over([...ink.slice(0, 3), ink[3] * alpha], below)), light(below)];
    const ratio = (Math.max(...lights) + 0.05) / (Math.min(...lights) + 0.05);
    if (ratio < bound) found.push(ratio.toFixed(2) + ' ' + x.tagName + '.'
      + (x.className.baseVal ?? x.className) + ': ' + words.slice(0, 40));
  };
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    const x = node.parentElement, words = node.textContent.trim();
    if (!words || !x.checkVisibility({opacityProperty: true, visibilityProperty: true})
      || /SCRIPT|STYLE|TITLE/i.test(x.tagName)) continue;
    const box = x.getBoundingClientRect();
    // Menus that are drawn out of the window's side are not there yet.
    if (box.width < 2 || box.height < 2 || box.right <= 0 || box.left >= innerWidth) continue;
    if (x.ownerSVGElement) {
      const below = shape(x), page = behind(x.ownerSVGElement);
      const filled = below ? over(read(getComputedStyle(below).fill), page) : page;
      check(x, getComputedStyle(x).fill, filled, words);
    } else check(x, getComputedStyle(x).color, behind(x), words);
  }
  return found;
}"""


def serve(folder):
    """Serves a folder on this machine alone; returns its address."""

    class Quiet(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=str(folder))
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return f"http://127.0.0.1:{server.server_port}"


def visit(page, address, folder, scheme, width, names):
    """Opens pages, takes pictures, and yields what is wrong with each."""
    for name in names:
        page.goto(f"{address}/{name}.html", wait_until="load")
        page.wait_for_timeout(150)  # the theme fades its colours in
        for rule, found in (("wide", page.evaluate(WIDE)), ("pale", page.evaluate(PALE, CONTRAST))):
            for line in sorted(set(found)):
                yield f"{name} {width} {scheme}: {rule}: {line}"
        picture = folder / f"{name.replace('/', '_')}-{width}-{scheme}.png"
        page.screenshot(path=picture, full_page=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--site", type=pathlib.Path, default=ROOT / "build" / "site")
    parser.add_argument("--out", type=pathlib.Path, default=ROOT / "build" / "screenshots")
    parser.add_argument("--browser", default="/usr/bin/chromium")
    parser.add_argument("pages", nargs="*", default=PAGES)
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    address, failures, elsewhere = serve(args.site), [], set()
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=args.browser, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        for scheme in SCHEMES:
            for width in WIDTHS:
                context = browser.new_context(
                    viewport={"width": width, "height": 900}, color_scheme=scheme
                )
                page = context.new_page()
                page.on("request", lambda x: x.url.startswith(address) or elsewhere.add(x.url))
                failures += visit(page, address, args.out, scheme, width, args.pages)
                context.close()
        browser.close()
    failures += [f"asked another server: {url}" for url in elsewhere if "://" in url]
    print("\n".join(failures) or f"Nothing is wrong with {len(args.pages)} pages.")
    print(f"Pictures are in {args.out}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
