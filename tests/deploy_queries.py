"""Every PromQL expression of deploy/ and where it stands, and what one of them names."""

import json
from dataclasses import dataclass, field
from typing import Any

import promql_parser
import yaml

from tests.deploy_files import DEPLOY

DASHBOARD = DEPLOY / "compose" / "grafana" / "dashboards" / "aecnn-edge.json"
ALERTS = DEPLOY / "compose" / "prometheus" / "alerts.yml"
# What Grafana puts in before it asks: every edge, and a range of at least four scrapes.
VARIABLES = {"$instance": ".*", "$__rate_interval": "1m"}
COMPARISONS = (">", "<", ">=", "<=", "==", "!=")


@dataclass
class Names:
    """Metrics of an expression with their matchers (label, operator, value), and labels that it groups or joins by."""

    selectors: list[tuple[str, list[tuple[str, promql_parser.MatchOp, str]]]] = field(default_factory=list)
    grouped: set[str] = field(default_factory=set)


def dashboard() -> dict[str, Any]:
    document = json.loads(DASHBOARD.read_text())
    assert isinstance(document, dict)
    return document


def expressions() -> dict[str, str]:
    """Each panel's and each alert's expressions, by where they stand; variables are filled in."""
    found = {}
    for panel in dashboard()["panels"]:
        for target in panel.get("targets", []):
            text = target["expr"]
            for name, value in VARIABLES.items():
                text = text.replace(name, value)
            found[f"{panel['id']}{target['refId']} {panel['title']}"] = text
    for group in yaml.safe_load(ALERTS.read_text())["groups"]:
        for rule in group["rules"]:
            found[rule["alert"]] = rule["expr"]
    return found


def measured(text: str) -> str:
    """An alert's expression without its threshold: what has a value also while all is well."""
    parsed = promql_parser.parse(text)
    compared = isinstance(parsed, promql_parser.BinaryExpr) and str(parsed.op) in COMPARISONS
    return str(parsed.lhs) if compared else text


def names_in(text: str) -> Names:
    """What ``text`` refers to. Raises ValueError: it is no PromQL."""
    found = Names()

    def visit(node: Any) -> bool:
        if isinstance(node, promql_parser.VectorSelector):
            matchers = [(each.name, each.op, each.value) for each in node.matchers.matchers]
            found.selectors.append((node.name, matchers))
        elif isinstance(node, promql_parser.AggregateExpr) and node.modifier is not None:
            found.grouped |= set(node.modifier.labels)
        elif isinstance(node, promql_parser.BinaryExpr) and node.modifier is not None:
            found.grouped |= set(node.modifier.matching.labels if node.modifier.matching else ())
            found.grouped |= set(node.modifier.group_labels or ())
        return True

    promql_parser.walk(promql_parser.parse(text), visit)
    return found
