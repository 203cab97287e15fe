"""Pages as HTML text, the same whether a server gives them out or they are written to disk."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any, Final

import jinja2
from markupsafe import Markup

from gradiometer import __version__
from gradiometer.app.drawing import page_data
from gradiometer.app.scene import LabPage
from gradiometer.report.html import plotly_script, with_code

_REPORT, _STATIC = "gradiometer.report", "gradiometer.app"

STATIC: Final[Mapping[str, tuple[str, str]]] = {
    "report.css": (_REPORT, "report.css"),
    "drawing.js": (_REPORT, "drawing.js"),
    "app.css": (_STATIC, "static/app.css"),
    "home.js": (_STATIC, "static/home.js"),
    "exhibits.js": (_STATIC, "static/exhibits.js"),
    "lab.js": (_STATIC, "static/lab.js"),
}
"""Files of our own that a page may ask for: name -> package and path in it."""

PLOTLY: Final = "plotly.js"


def static_text(name: str) -> str | None:
    """The text of a static file; None if there is none of that name."""
    if name == PLOTLY:
        return plotly_script()
    if name not in STATIC:
        return None
    package, path = STATIC[name]
    return files(package).joinpath(path).read_text(encoding="utf-8")


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        loader=jinja2.PackageLoader("gradiometer.app", "."),
    )
    environment.filters["ticks"] = with_code
    return environment


def _render(template: str, pages: Sequence[LabPage], links: Mapping[str, str], static: str, **context: Any) -> str:
    # a page on disk has no server to send its policy
    shared = {"version": __version__, "pages": pages, "links": links, "static": static, "policy": ""}
    return _environment().get_template(template).render({**shared, **context})


def home(pages: Sequence[LabPage], links: Mapping[str, str], static: str, **context: Any) -> str:
    """The home page.

    Args:
        pages: all pages of the lab, in order.
        links: addresses by name of the page; ``home``.
        static: what static files' names are appended to.
        context: what the template may ask for beside that.
    """
    return _render("home.html.j2", pages, links, static, title="Lab", here="home", scripts=["home.js"], **context)


def lab(
    page: LabPage, where: Mapping[str, Any], pages: Sequence[LabPage], links: Mapping[str, str], static: str, **context: Any
) -> str:
    """A page of the lab.

    Args:
        page: the page.
        where: how its states are fetched, see `drawing.page_data`.
        pages: as in `home`, like all that follow.
        links: see there.
        static: see there.
        context: see there.
    """
    scripts = ["exhibits.js", "lab.js"]
    data = Markup(page_data(page, where))
    return _render(
        "lab.html.j2", pages, links, static, title=page.title, here=page.name, page=page, data=data, scripts=scripts, **context
    )
