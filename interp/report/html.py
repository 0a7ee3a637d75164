"""The HTML report: one file with everything in it, which opens offline and draws a figure when it comes into view.

The page allows itself no network and no script but its own two (a content security policy with their hashes), so that
token text could do no harm even if an escape were missing; every value is escaped by the template all the same.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp import figures
from interp.figures._text import visible
from interp.files.writing import Outputs, write
from interp.report.content import Section, content_of

if TYPE_CHECKING:
    import xarray as xr

    from interp.probes import Probe

HERE = Path(__file__).parent
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data: blob:; base-uri 'none'; form-action 'none'"


def write_report(
    results: Mapping[str, xr.Dataset],
    run: Mapping[str, Any],
    path: str | Path,
    probes: Iterable[Probe] | None = None,
    outputs: Outputs | None = None,
) -> Path:
    """Write the report of one run as an HTML file; it appears complete or not at all. Returns its path.

    Args:
        results: what `interp.probe` returned, any part of it.
        run: what was run. `model`, `text` (a path or a description), `n_tokens`, `command` (the command line that made
            this report), `seconds` (a dict such as `{"load": 3.2, "probe": 20.1}`), `python_text` (a Python expression
            that gives the text), and facts such as `interp.storage.provenance()` gives. All may be absent.
        path: the file to write; missing folders are made.
        probes: the probes that made the results, for their findings in words; None for those with default parameters.
        outputs: what it appears together with; None: it appears at once.

    Raises InterpError where there are no results, or where they are of several texts.
    """
    return write(path, page(results, run, probes), outputs)


def page(results: Mapping[str, xr.Dataset], run: Mapping[str, Any], probes: Iterable[Probe] | None = None) -> str:
    """What `write_report` writes."""
    content = content_of(results, run, probes)
    drawn = {section.name: _figures(section, content.sections) for section in content.sections}
    return render(HERE / "page.html", content=content, figures=drawn)


def render(template: Path, style: str = "", **values: Any) -> str:
    """A page in the look of all reports: self-contained, with a policy that allows its own two scripts and no other.

    Args:
        template: a jinja2 template that extends `base.html`, as `page.html` does.
        style: CSS that goes after the shared one.
        values: what else the template names; every string is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup
    from plotly.offline import get_plotlyjs

    scripts = [get_plotlyjs(), (HERE / "page.js").read_text(encoding="utf-8")]
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    )
    environment.filters["visible"] = visible
    return environment.get_template(template.name).render(
        policy=f"{POLICY}; script-src {' '.join(map(_source, scripts))}",
        style=Markup((HERE / "page.css").read_text(encoding="utf-8") + style),
        scripts=[Markup(script) for script in scripts],
        **values,
    )


def _figures(section: Section, sections: Iterable[Section]) -> list[dict[str, Any]]:
    """Each figure of a result: name, caption, height in pixels, and JSON that plotly made safe for a script tag."""
    from markupsafe import Markup

    same = {one.name: one.result for one in sections if _read(one) == _read(section)}

    drawn = []
    for name, figure in figures.figures_of(section.name).items():
        fig = figure(section.result, **{key: same[of] for key, of in figures.beside(name).items() if of in same})
        drawn.append(
            {"name": name, "caption": _caption(figure), "height": fig.layout.height, "json": Markup(fig.to_json())}
        )
    return drawn


def _read(section: Section) -> tuple[Any, ...]:
    """The text and images that a result is of."""
    return tuple(section.result.attrs.get(name) for name in ("tokens_sha256", "pictures"))


def _caption(figure: Any) -> str:
    """The first paragraph of a figure's docstring, on one line."""
    return re.sub(r"\s+", " ", (figure.__doc__ or "").partition("\n\n")[0]).strip()


def _source(script: str) -> str:
    """What allows exactly this script in a content security policy."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"
