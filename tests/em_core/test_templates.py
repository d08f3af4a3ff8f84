from pathlib import Path

import pytest
from jinja2 import UndefinedError

from em_core.templates import templates


def render(folder: Path, text: str, html: bool = False, **given: str) -> str:
    (folder / "page.j2").write_text(text)
    return templates(folder, html).get_template("page.j2").render(**given)


def test_only_html_is_escaped(tmp_path: Path) -> None:
    assert render(tmp_path, "{{ answer }}", answer="<b>") == "<b>"
    assert render(tmp_path, "{{ answer }}", html=True, answer="<b>") == "&lt;b&gt;"


def test_a_name_that_nobody_gave_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UndefinedError, match="rate"):
        render(tmp_path, "{{ rate }}")


def test_lines_of_statements_alone_leave_no_trace(tmp_path: Path) -> None:
    assert render(tmp_path, "{% if a %}\n  {% if a %}\nkept\n  {% endif %}\n{% endif %}\n", a="yes") == "kept\n"
