"""Hooks of mkdocs: pages from files outside of docs/, drawings, and the help of the commands.

Pages of docs/ are written to be read in the repository, too: their links and pictures are relative
to their file. Here docs/ is the root of the site, and the other files that pages name lie beside it
under the paths that they have in the repository. In a page

    <!-- include: benchmarks/plans.md -->            the file without its title
    <!-- include: README.md # Length -->             one section, without its heading
    <!-- include: README.md -->                      of README.md, the text before its sections
    <!-- commands -->                                the help of every command
    ![text](drawings/NAME.svg)                       the drawing, or a plot, inside of the page

so no figure is copied from one file to another.
"""

import ast
import html
import json
import os
import pathlib
import posixpath
import re
import subprocess
import sys

from mkdocs.structure.files import File, InclusionLevel

ROOT = pathlib.Path(__file__).resolve().parent.parent.parent
OUTSIDE = (
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "benchmarks/*.md",
    "benchmarks/plots/*.svg",
    "examples/*.md",
    "examples/*.py",
    "examples/notebooks/*.ipynb",
    "presets/*/*.md",
)
FENCE = re.compile(r"^( *)(```+|~~~+)[^\n]*\n.*?^\1\2[ \t]*$", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(?P<code>(`+)[^`].*?\2)|\]\((?P<target>[^)\s]+)\)", re.DOTALL)
INCLUDE = re.compile(r"^<!-- include: (\S+?)(?: # (.+?))? -->$", re.MULTILINE)
COMMANDS = re.compile(r"^<!-- commands -->$", re.MULTILINE)
FIGURE = re.compile(
    r"^!\[([^\]]*)\]\(\0(docs/drawings|benchmarks/plots)/(\w+)\.svg\)$", re.MULTILINE
)
PLOT_INK = "#727a84"  # `TEXT` of keras_rgemma/benchmarks/plots.py, between white and black
# A fence with a word for the tests behind its language, such as `python no-run`.
MARKED = re.compile(r"^( *```\w+)[ ,][\w ,-]+$", re.MULTILINE)
HEADING = re.compile(r"^(#+) +(.+?) *$", re.MULTILINE)


def outside():
    """The files outside of docs/ that the site shows, by their path in it, a dict of paths."""
    pages = []
    for pattern in OUTSIDE:
        pages += sorted(ROOT.glob(pattern))
    found = {page.relative_to(ROOT).as_posix(): page for page in pages}
    return {site_path(path): page for path, page in found.items()}


def site_path(path):
    """The path in the site of a path in the repository."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    folder = {"benchmarks": "figures.md", "examples": "examples/README.md"}.get(path.rstrip("/"))
    if folder:
        return folder
    if path.startswith("examples/"):
        path = re.sub(r"\.(py|ipynb)$", ".md", path)
    return "index.md" if path == "README.md" else path


def repository_path(uri):
    """The path in the repository of a page of the site."""
    source = outside().get(uri)
    return source.relative_to(ROOT).as_posix() if source else f"docs/{uri}"


def on_files(files, config):
    """Adds the files outside of docs/."""
    for uri, source in outside().items():
        text = source.read_text(encoding="utf-8")
        name = f"`{source.relative_to(ROOT).as_posix()}`"
        if source.suffix == ".py":
            text = f"# {source.name}\n\n{name}\n\n```python\n{text}```\n"
        elif source.suffix == ".ipynb":
            text = notebook(json.loads(text), name)
        level = InclusionLevel.NOT_IN_NAV
        files.append(File.generated(config, uri, content=text, inclusion=level))
    return files


def notebook(cells, name):
    """The cells of a notebook as a page, with its file below its title."""
    parts = []
    for cell in cells["cells"]:
        text = "".join(cell["source"])
        parts.append(text if cell["cell_type"] == "markdown" else f"```python\n{text}\n```")
    title, _, rest = parts[0].partition("\n")
    return "\n\n".join([title, name, rest, *parts[1:]])


def on_page_markdown(markdown, page, config, files):
    """Fills in what a page includes, and points its links to the pages of the site."""
    source = repository_path(page.file.src_uri)
    text = COMMANDS.sub(lambda _: commands(), absolute_links(markdown, source))
    text = INCLUDE.sub(lambda found: included(found[1], found[2]), text)
    text = FIGURE.sub(lambda found: figure(*found.groups()), text)
    text = MARKED.sub(r"\1", text)
    here = posixpath.dirname(page.file.src_uri)

    def relative(path):
        path, mark, place = path.partition("#")
        return posixpath.relpath(site_path(path), here or ".") + mark + place

    return over_links(text, lambda x: relative(x[1:]) if x.startswith("\0") else x)


def on_page_content(content, **_):
    """Mends two things in the HTML of a page."""
    # No dash in front of a description that no type precedes.
    content = re.sub(r'(<li class="doc-section-item field-body">)\s*\u2013\s*', r"\1", content)
    # Code in tables breaks behind a sign, and not within a word.
    return re.sub(r"<td.*?</td>", lambda cell: breakable(cell[0]), content, flags=re.DOTALL)


def breakable(cell):
    """A cell of a table whose code may break behind signs."""

    def broken(code):
        return re.sub(r"([.(/_:=,]+)(?=[^<])", r"\1<wbr>", code[0])

    return re.sub(r"(?<=<code>)[^<]+(?=</code>)", broken, cell)


def over_links(text, change):
    """Changes the target of every link and picture that is no part of code."""

    def changed(found):
        return found[0] if found["code"] else f"]({change(found['target'])})"

    parts, end = [], 0
    for fence in FENCE.finditer(text):
        parts += [LINK.sub(changed, text[end : fence.start()]), fence[0]]
        end = fence.end()
    return "".join([*parts, LINK.sub(changed, text[end:])])


def absolute_links(text, source):
    """Marks the relative links of a file with the path that they have in the repository."""
    folder = posixpath.dirname(source)

    def absolute(target):
        if re.match(r"[a-z]+:|#|/|\0", target):
            return target
        return "\0" + posixpath.normpath(posixpath.join(folder, target))

    return over_links(text, absolute)


def included(path, heading):
    """The text of a file in the repository, or of one of its sections."""
    text = absolute_links((ROOT / path).read_text(encoding="utf-8"), path)
    fences = [fence.span() for fence in FENCE.finditer(text)]
    headings = [
        found
        for found in HEADING.finditer(text)
        if not any(start <= found.start() < end for start, end in fences)
    ]
    title, sections = headings[0], headings[1:]
    if heading is None:
        is_readme = path == "README.md"
        return text[title.end() : sections[0].start() if is_readme else len(text)].strip()
    chosen = next((x for x in sections if x[2] == heading), None)
    if chosen is None:
        names = [x[2] for x in sections]
        raise ValueError(f"{path} has no section {heading!r}. Choose one of {names}.")
    later = (x for x in sections if x.start() > chosen.start() and len(x[1]) <= len(chosen[1]))
    end = next(later, None)
    return text[chosen.end() : end.start() if end else len(text)].strip()


def figure(text, folder, name):
    """A drawing or a plot as a part of the page, which then has the page's colours."""
    kind = {"docs/drawings": "drawing", "benchmarks/plots": "plot"}[folder]
    svg = (ROOT / folder / f"{name}.svg").read_text(encoding="utf-8")
    svg = re.sub(r"<\?xml.*?\?>|<!DOCTYPE.*?>|<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"\s*\n\s*", " ", svg).strip()  # an empty line would end the HTML
    label = html.escape(text, quote=True)
    svg = svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)
    svg = svg.replace(PLOT_INK, "currentColor")
    return f'<figure class="{kind}-figure">{svg}</figure>'


def commands():
    """The help of each command, as it prints it."""
    tree = ast.parse((ROOT / "keras_rgemma" / "cli" / "__init__.py").read_text(encoding="utf-8"))
    (names,) = (
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "COMMANDS"
    )
    return "\n\n".join(f"## {name}\n\n```text\n{help_of(name)}```" for name in names)


def help_of(name):
    """What `keras-rgemma NAME --help` prints, str."""
    environment = {**os.environ, "COLUMNS": "88", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "keras_rgemma.cli", name, "--help"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return done.stdout
