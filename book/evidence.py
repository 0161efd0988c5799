"""The page "Evidence": what each chapter claims, its figures and its assertions, and the recorded files behind them.

It is made while the site is built, from the chapters and from data/results, so it cannot be out of date. Where a number
comes from is read off the code: a name that was assigned from `load_results("x")`, or from another such name, comes
from data/results/x. What comes from no recorded result is computed while the chapter runs.
"""

from __future__ import annotations

import ast
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path

RESULTS = Path(__file__).resolve().parent.parent / "data" / "results"
_STUDY = {"FIGURE_3": "seqgan-study+r*", "KNOBS": "seqgan-study+*"}  # names of the library that stand for experiments


def evidence_page(notebooks: dict, address: str) -> str:
    """What follows chapters/evidence.md on its page, for executed notebooks by name and the repository's address."""
    parts = []
    for stem, notebook in notebooks.items():
        found = Chapter(notebook)
        parts.append(f"## [{found.title}]({stem}.ipynb)\n")
        if found.recap:
            parts.append(f"**What it claims**\n\n{found.recap}\n")
        if found.figures:
            rows = [f"| {_cell(title)} | {_cell(alt)} | {_names(names)} |" for title, alt, names in found.figures]
            parts.append("\n".join(["| figure | what it shows | from |", "|---|---|---|", *rows]) + "\n")
        if found.claims:
            # Closed, and in HTML: some chapters assert a hundred things.
            sections = defaultdict(list)
            for section, claim, names in found.claims:
                sections[section].append(f"- {claim} ({_names(names)})")
            lists = "\n\n".join(f"**{section}**\n\n" + "\n".join(items) for section, items in sections.items())
            count = len(found.claims)
            parts.append(f"<details>\n<summary>{count} assertions</summary>\n\n{lists}\n\n</details>\n")
    return "\n".join([*parts, _TAIL, *_recorded(address)]) + "\n"


_TAIL = """\
## Recorded results

A folder `data/results/NAME/seed-N` holds `run.json`, which says where the numbers come from, and the raw curves as CSV.
"""


class Chapter:
    """What stands in a chapter: its title, its recap, figures and claims with the names of the results behind them."""

    def __init__(self, notebook) -> None:
        self.title, self.recap, section = "", "", ""
        self.figures: list[tuple[str, str, set[str]]] = []
        self.claims: list[tuple[str, str, set[str]]] = []
        self.known: dict[str, set[str]] = {name: set(_matching(pattern)) for name, pattern in _STUDY.items()}
        for cell in notebook.cells:
            if cell.cell_type == "markdown":
                headings = re.findall(r"^(#{1,3}) (.+)$", cell.source, re.M)
                self.title = self.title or next((text for marks, text in headings if marks == "#"), "")
                section = headings[-1][1] if headings else section
                if match := re.search(r"^## Recap\n+((?:^[-* ] ?.*\n?)+)", cell.source, re.M):
                    self.recap = match[1].strip()
            elif cell.cell_type == "code":
                source = re.sub(r"^(\s*)[%!].*$", r"\1pass", cell.source, flags=re.M)
                behind = self._read(ast.parse(source).body, source, section)
                if alt := next(filter(None, map(alternative_text, cell.outputs)), ""):
                    self.figures.append((_title(source) or section, alt, behind))

    def _read(self, body: Iterable[ast.stmt], source: str, section: str) -> set[str]:
        """Follow the names through statements, note the assertions among them, and say what stands behind them all."""
        total: set[str] = set()
        for statement in body:
            if isinstance(statement, (ast.For, ast.While, ast.With, ast.If)):
                for target, value in _bound(statement):
                    self._know(target, self._behind(value))
                total |= self._read(statement.body + getattr(statement, "orelse", []), source, section)
                continue
            behind = self._behind(statement)
            inside = [node for node in ast.walk(statement) if isinstance(node, ast.Assert)]  # itself, or a function's
            self.claims += [(section, _code(node, source), behind) for node in inside]
            for target in _assigned(statement):
                self._know(target, behind)
            total |= behind
        return total

    def _know(self, target: ast.expr | str, sources: set[str]) -> None:
        """A name has a new value, from these results, or it holds one more, as after ``rows[k] = …``."""
        if isinstance(target, str):
            self.known[target] = sources
        elif isinstance(target, (ast.Tuple, ast.List)):
            for element in target.elts:
                self._know(element, sources)
        elif isinstance(target, ast.Name):
            self.known[target.id] = sources
        else:
            while isinstance(target, (ast.Subscript, ast.Attribute, ast.Starred, ast.Call)):
                target = target.func if isinstance(target, ast.Call) else target.value
            if isinstance(target, ast.Name):
                self.known[target.id] = self.known.get(target.id, set()) | sources

    def _behind(self, tree: ast.AST) -> set[str]:
        """The results that a piece of code reads, itself or by the names that it uses."""
        found: set[str] = set()
        own = _own(tree)
        for node in ast.walk(tree):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load) and node.id not in own:
                found |= self.known.get(node.id, set())
            elif isinstance(node, ast.Constant) and isinstance(node.value, str) and "-" in node.value:
                found |= {node.value} & set(_experiments())
            elif isinstance(node, ast.JoinedStr):
                pattern = "".join(part.value if isinstance(part, ast.Constant) else "*" for part in node.values)
                if re.fullmatch(r"\*-[\w+=.,*-]+", pattern):  # METHOD-SCALE, for all methods
                    found |= {name for name in _matching(pattern) if " seqgan_lib run " in _runs(name)[0]["command"]}
                elif re.fullmatch(r"\w[\w*+=.,-]*-[\w*+=.,-]+", pattern):
                    found |= set(_matching(pattern))
        return found


def _own(tree: ast.AST) -> set[str]:
    """The names that a piece of code has for itself: parameters, and what its functions and comprehensions assign."""
    own = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.arguments):
            own |= {argument.arg for argument in [*node.args, *node.kwonlyargs]}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef, ast.comprehension)):
            part = node.target if isinstance(node, ast.comprehension) else node
            own |= {n.id for n in ast.walk(part) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    return own


def _bound(statement: ast.stmt) -> Iterator[tuple[ast.expr, ast.AST]]:
    """What a loop or a with-statement binds, and to what."""
    if isinstance(statement, ast.For):
        yield statement.target, statement.iter
    for item in getattr(statement, "items", []):
        if item.optional_vars is not None:
            yield item.optional_vars, item.context_expr


def _assigned(statement: ast.stmt) -> list[ast.expr | str]:
    """What a simple statement or a definition gives a new value, or something more to hold."""
    if isinstance(statement, (ast.FunctionDef, ast.ClassDef)):
        return [statement.name]
    targets = [*getattr(statement, "targets", []), *([statement.target] if hasattr(statement, "target") else [])]
    if isinstance(statement, ast.AugAssign):
        targets = [ast.Starred(statement.target)]
    call = statement.value if isinstance(statement, ast.Expr) else None
    if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute):
        targets.append(call.func)  # as in rows.append(…)
    return targets + [node.target for node in ast.walk(statement) if isinstance(node, ast.NamedExpr)]


def _matching(pattern: str) -> list[str]:
    return [name for name in _experiments() if fnmatch(name, pattern)]


@cache
def _experiments() -> list[str]:
    return sorted(folder.name for folder in RESULTS.iterdir() if folder.is_dir())


@cache
def _runs(name: str) -> list[dict]:
    """What the run.json of each seed says."""
    return [json.loads(path.read_text("utf8")) for path in sorted((RESULTS / name).glob("seed-*/run.json"))]


def _code(statement: ast.Assert, source: str) -> str:
    """The assertion as a reader sees it, with the comment beside it."""
    text = re.sub(r"\s+", " ", re.sub(r"#.*", "", ast.get_source_segment(source, statement))).removeprefix("assert ")
    tail = source.splitlines()[statement.end_lineno - 1].encode()[statement.end_col_offset :].decode()
    _, hash_, comment = tail.partition("#")
    return f"`` {text.strip()} ``" + (f": {comment.strip()}" if hash_ else "")


def _title(source: str) -> str:
    """The title that stands above a figure: of the whole, of its only panel, or of its panels."""
    strings = r"[fr]?\"((?:[^\"\\]|\\.)*)\""
    whole = re.search(rf"suptitle\(\s*{strings}", source)
    titles = [whole[1]] if whole else re.findall(rf"title(?:=|\(\s*){strings}", source)
    return "; ".join(dict.fromkeys(re.sub(r"\{[^}]*\}", "…", title) for title in titles))


def alternative_text(output) -> str:
    """What describes an output's image to who cannot see it; notebooks keep it by the image, or beside it."""
    metadata = output.get("metadata", {})
    return metadata.get("image/png", {}).get("alt") or metadata.get("alt") or ""


def _cell(text: str) -> str:
    """Text for a cell of a table."""
    return re.sub(r"\s+", " ", text).replace("|", "\\|")


def _names(names: set[str]) -> str:
    """The results as a reader can take them in: what was changed in the study, as one."""
    changed = sorted(name for name in names if "+" in name)
    shown = sorted(names - set(changed)) + (changed if len(changed) < 3 else ["seqgan-study+…"])
    return ", ".join(f"`{name}`" for name in shown) or "live"


def _recorded(address: str) -> Iterator[str]:
    """The table of the recorded results; the study's variants are one row."""
    yield "| result | seeds | where | command |"
    yield "|---|---|---|---|"
    variants = [name for name in _experiments() if "+" in name]
    for name in [name for name in _experiments() if name not in variants]:
        runs = _runs(name)
        seeds = _span([run["seed"] for run in runs])
        devices = "; ".join(sorted({run["device"].split(",")[0] for run in runs}))
        command = re.sub(r" --seeds .*", f" --seeds {seeds.replace(' to ', '-')}", runs[0]["command"])
        if command.startswith("python data"):  # by itself it makes all
            command = command.partition(" --seeds")[0]
        yield f"| [{name}]({address}/tree/main/data/results/{name}) | {seeds} | {devices} | `{command}` |"
    if variants:
        what = f"{len(variants)} variants, `seqgan-study+…`"
        yield f"| {what} | three or five each | CPU | `python -m seqgan_lib study --jobs 2 --threads 1` |"


def _span(numbers: list[int]) -> str:
    """0 to 4, where they are in a row."""
    low, high = min(numbers), max(numbers)
    in_a_row = sorted(numbers) == list(range(low, high + 1)) and low < high
    return f"{low} to {high}" if in_a_row else ", ".join(map(str, sorted(numbers)))
