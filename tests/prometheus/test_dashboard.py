"""The dashboard: well-formed, of the metrics that there are; its queries find what happened.

Grafana itself is not among what the tests need: its JSON model is checked for what it asks of one,
and each query is run by the real Prometheus in ``test_end_to_end``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.prometheus.test_rules import BASE
from tests.test_docs import metric_names

Panel = dict[str, Any]

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "config/grafana/panicd.json").read_text(encoding="utf-8")
BOARD = json.loads(TEXT)
PANELS: list[Panel] = BOARD["panels"]
WITH_QUERIES = [panel for panel in PANELS if panel["type"] != "row"]
WIDTH = 24  # columns of Grafana's grid

VALUES = {
    "$job": "(panicd)",
    "$instance": ".*",
    "$domain": ".*",
    "$__rate_interval": "1m",
    "$__range": "1h",
}
"""What the variables stand for when everything is selected."""


def fill_in(expression: str) -> str:
    for variable, value in VALUES.items():
        expression = expression.replace(variable, value)
    assert "$" not in expression, f"a variable that nobody sets: {expression}"
    return expression


def expressions() -> Iterator[tuple[str, str]]:
    """Return the title and the expression of each query."""
    for panel in WITH_QUERIES:
        for target in panel["targets"]:
            yield panel["title"], fill_in(target["expr"])
    for annotation in BOARD["annotations"]["list"]:
        yield annotation["name"], fill_in(annotation["expr"])


def counts() -> Iterator[str]:
    """Return the expressions that are shown without decimals: people count what they tell of."""
    for panel in WITH_QUERIES:
        if panel["fieldConfig"]["defaults"].get("decimals") == 0:
            yield from (fill_in(target["expr"]) for target in panel["targets"])


def title(panel: Panel) -> str:
    return str(panel["title"])


def test_ids_are_unique() -> None:
    ids = [panel["id"] for panel in PANELS]
    assert len(set(ids)) == len(ids)
    assert BOARD["uid"] == "panicd"
    assert "id" not in BOARD, "that is the database's of one Grafana"


def test_panels_do_not_overlap() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in PANELS:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= WIDTH
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        taken |= cells


def test_the_data_source_is_chosen_where_it_is_shown() -> None:
    variables = {variable["name"]: variable for variable in BOARD["templating"]["list"]}
    assert variables.keys() == {
        *("datasource", "job", "instance", "domain", "scheme", "runbooks"),
    }
    assert variables["datasource"]["type"] == "datasource"
    assert variables["datasource"]["query"] == "prometheus"
    sources = re.findall(r'"uid": "([^"]+)"', TEXT)
    assert set(sources) == {"${datasource}", "panicd"}


@pytest.mark.parametrize("panel", WITH_QUERIES, ids=title)
def test_a_panel_says_what_it_shows(panel: Panel) -> None:
    assert panel["title"]
    assert panel["description"].endswith(".")
    assert panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"}
    references = [target["refId"] for target in panel["targets"]]
    assert references
    assert len(set(references)) == len(references)


def test_every_metric_is_shown_and_no_other() -> None:
    shown = {
        re.sub(r"_seconds_bucket$", "_seconds", name)
        for _, expression in expressions()
        for name in re.findall(r"\bpanicd_\w+", expression)
    }
    # A domain's failures are its host's, which are shown; the file's metrics stand for the rest.
    assert shown == metric_names() - {"panicd_domain_action_failures_total"}


def test_links_lead_to_the_page_of_what_a_row_tells_of_and_to_runbooks() -> None:
    page = "${scheme}://${__data.fields.instance}/"
    links: dict[str, set[str]] = {}
    for panel in WITH_QUERIES:
        for override in panel["fieldConfig"]["overrides"]:
            field = override["matcher"]["options"]
            for entry in override["properties"]:
                if entry["id"] == "links":
                    links.setdefault(field, set()).update(link["url"] for link in entry["value"])
    assert links == {
        "alertname": {"${runbooks}${__data.fields.alertname}.md"},
        "instance": {page},
        "domain": {f"{page}domain?name=${{__data.fields.domain:percentencode}}"},
        "signature": {f"{page}panics/${{__data.fields.signature}}"},
    }
    (runbooks,) = [v for v in BOARD["templating"]["list"] if v["name"] == "runbooks"]
    assert runbooks["query"] == BASE


def test_what_is_told_of_hosts_tells_them_apart() -> None:
    """In every table, and wherever a series is a domain's: two hosts may have one of a name."""
    for panel in WITH_QUERIES:
        hidden = {
            name
            for change in panel.get("transformations", ())
            for name in change["options"].get("excludeByName", ())
        }
        assert "instance" not in hidden, panel["title"]
        for target in panel["targets"]:
            legend = target["legendFormat"]
            assert "{{domain}}" not in legend or "{{instance}}" in legend, panel["title"]
