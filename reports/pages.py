"""How every page is made: one HTML file from a Jinja2 template, with styles, data and the modules of ``web/`` inside.

What comes from a trace is escaped by the template engine, data goes in as JSON, and the page's own policy forbids all
scripts but its own and all requests. So a prompt can hold whatever it likes, and a page opens from a disk.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

WEB = Path(__file__).resolve().parents[1] / "web"
TEMPLATES = Path(__file__).with_name("templates")
_IMPORT = re.compile(r'^import \{([^}]*)\} from "([^"]+)";$', re.MULTILINE)
_EXPORT = re.compile(r"^export (?=(?:async )?(?:const|function|class) (\w+))", re.MULTILINE)


def modules_of(entry: str) -> dict[str, str]:
    """Path below ``web/`` -> source of a module and of all that it imports, what is imported first.

    Raises:
        ValueError: two modules import each other, or an import or export is written in a way that cannot be inlined.
    """
    found: dict[str, str] = {}

    def visit(path: Path, above: tuple[Path, ...]) -> None:
        name = path.relative_to(WEB).as_posix()
        if path in above:
            raise ValueError(f"web/{name} imports itself by way of {above[-1].relative_to(WEB).as_posix()}")
        if name in found:
            return
        source = path.read_text(encoding="utf-8")
        for _, target in _IMPORT.findall(source):
            visit((path.parent / target).resolve(), (*above, path))
        left = _EXPORT.sub("", _IMPORT.sub("", source))
        odd = re.search(r"^(import|export)\b.*", left, re.MULTILINE)
        if odd or "</script" in source:
            what = odd.group() if odd else "</script"
            raise ValueError(f'web/{name}: {what!r} cannot go into a page; write `import {{ a }} from "./b.js";`')
        found[name] = source

    visit((WEB / entry).resolve(), ())
    return found


@lru_cache
def bundle(entry: str, call: str) -> str:
    """One script that does what a page would by importing ``call`` from ``web/ENTRY`` and calling it.

    Every module becomes a function of its own, so that names inside it stay its own.
    """
    parts = ['"use strict";', "const modules = {};"]
    for name, source in modules_of(entry).items():
        here = (WEB / name).parent

        def imported(match: re.Match[str], here: Path = here) -> str:
            names, target = match.groups()
            return f'const {{{names}}} = modules["{(here / target).resolve().relative_to(WEB).as_posix()}"];'

        exports = ", ".join(_EXPORT.findall(source))
        body = _EXPORT.sub("", _IMPORT.sub(imported, source))
        parts.append(f'modules["{name}"] = (() => {{\n{body}return {{ {exports} }};\n}})();')
    return "\n".join([*parts, f'modules["{entry}"].{call}();\n'])


@lru_cache
def environment(*folders: Path) -> Environment:
    """Templates of ``folders`` before those that all pages share. Everything is escaped; a missing name is an error."""
    made = Environment(
        loader=FileSystemLoader([*folders, TEMPLATES]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["thousands"] = lambda value: f"{value:,}"
    return made


def page(
    template: str,
    *,
    script: tuple[str, str],
    styles: Sequence[str],
    data: Any,
    folders: Sequence[Path] = (),
    **context: Any,
) -> str:
    """The text of a page.

    Args:
        template: name of the template; it extends ``page.html``.
        script: (module below ``web/``, function of it that fills the page).
        styles: style sheets below ``web/pages/``.
        data: what the script reads, as JSON; no NaN or infinity.
        folders: where the template is, if not among the shared ones.
        context: names for the template.
    """
    code = bundle(*script)
    digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
    return (
        environment(*folders)
        .get_template(template)
        .render(
            policy=f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'",
            style=Markup("".join((WEB / "pages" / name).read_text(encoding="utf-8") for name in styles)),
            script=Markup(code),
            data=data,
            **context,
        )
    )
