"""A W&B workspace with the charts of `ldm report`, made through the service's GraphQL interface.

The wandb client has no call for it; the package that has one, wandb-workspaces, rests on the same two requests: look
for a view of a name, and insert or update it. What a view holds is written as that package writes it.
"""

from __future__ import annotations

import base64
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from evaluation.panels import Panel, panels
from evaluation.run_metrics import METRICS, read_metrics

NAME = "ldmtraining"
"""Of the workspace in its address, so that the next time it is updated; never two of them."""
TITLE = "Latent diffusion training"
SCHEMA = (
    "train/loss", "train/loss_decile_0", "train/loss_decile_1", "train/gradient_norm", "train/learning_rate",
    "train/update_ratio", "train/ema_decay", "eval/psnr", "eval/ssim", "speed/images_per_second",
    "speed/images_per_second_per_rank", "speed/mfu", "speed/step_seconds", "speed/data_seconds",
    "speed/forward_seconds", "speed/backward_seconds", "speed/optimizer_seconds", "speed/communication_seconds",
    "speed/slowest_rank", "data/wait_fraction", "data/bytes_per_second", "data/queue_depth", "data/retries",
    "memory/peak_gib", "memory/rank0_gib", "memory/rank1_gib", "checkpoint/stall_seconds", "checkpoint/seconds",
    "checkpoint/bytes", "run/goodput", "run/restarts", "run/lost_steps",
)  # fmt: skip
"""Metrics whose charts are there before any run logged them."""
PICTURES = "samples"
X_AXIS = "_step"  # W&B's own, which is the optimizer's
TIMEOUT_SECONDS = 30.0
VIEWER = "query Viewer { viewer { username entity } }"
PROJECT = "query Project($name: String!, $entity: String!) { project(name: $name, entityName: $entity) { id } }"
CREATE_PROJECT = """
mutation CreateProject($name: String!, $entity: String!) {
  upsertModel(input: {name: $name, entityName: $entity}) { model { id } }
}"""
VIEWS = """
query Views($name: String!, $entity: String!, $view: String!) {
  project(name: $name, entityName: $entity) {
    allViews(viewType: "project-view", viewName: $view) { edges { node { id name } } }
  }
}"""
UPSERT = """
mutation UpsertView(
  $id: ID, $entity: String, $project: String, $name: String, $title: String, $spec: String
) {
  upsertView(input: {
    id: $id, entityName: $entity, projectName: $project, name: $name, displayName: $title, type: "project-view",
    description: "", spec: $spec, createdUsing: WANDB_SDK
  }) { view { id name } inserted }
}"""


class ServiceError(Exception):
    """W&B can't be reached, or refuses."""


class Service:
    """GraphQL requests to W&B, under a key."""

    def __init__(self, address: str, key: str) -> None:
        self.address = address.rstrip("/")
        self._authorization = "Basic " + base64.b64encode(f"api:{key}".encode()).decode()

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """The answer's data. Raises ServiceError, which never tells the key."""
        request = urllib.request.Request(
            f"{self.address}/graphql",
            json.dumps({"query": query, "variables": variables}).encode(),
            {"Content-Type": "application/json", "Authorization": self._authorization},
        )
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_SECONDS) as response:
                answer = json.load(response)
        except urllib.error.HTTPError as error:
            remedy = "it doesn't accept WANDB_API_KEY" if error.code in (401, 403) else "try again later"
            raise ServiceError(f"W&B at {self.address} answered {error.code} {error.reason}: {remedy}") from error
        except (OSError, ValueError) as error:
            raise ServiceError(
                f"W&B at {self.address} can't be asked: {error}; set WANDB_BASE_URL to its address, or unset "
                "WANDB_API_KEY to work offline"
            ) from error
        if answer.get("errors"):
            told = "; ".join(str(error.get("message", error)) for error in answer["errors"])
            raise ServiceError(f"W&B at {self.address} refused: {told}")
        data: dict[str, Any] = answer["data"]
        return data


def write_workspace(service: Service, entity: str | None, project: str, metrics: Sequence[str]) -> str:
    """Makes the project if there is none, and in it the workspace anew, and returns the workspace's address.

    metrics: names that get charts beside those of SCHEMA. Raises ServiceError.
    """
    viewer = service.ask(VIEWER).get("viewer")
    if not viewer:
        raise ServiceError(f"W&B at {service.address} doesn't accept WANDB_API_KEY; get one from its /authorize page")
    owner = entity or viewer["entity"]
    if service.ask(PROJECT, name=project, entity=owner).get("project") is None:
        service.ask(CREATE_PROJECT, name=project, entity=owner)
    view = f"nw-{NAME}-v"
    found = service.ask(VIEWS, name=project, entity=owner, view=view)["project"]["allViews"]["edges"]
    known = {"id": found[0]["node"]["id"]} if found else {}
    names = list(dict.fromkeys([*SCHEMA, *metrics]))
    spec = json.dumps(workspace(names))
    service.ask(UPSERT, entity=owner, project=project, name=view, title=TITLE, spec=spec, **known)
    return f"{service.address.replace('//api.', '//')}/{owner}/{project}?nw={NAME}"


def logged_metrics(run_folders: Sequence[Path]) -> list[str]:
    """Names of all metrics in the folders' metrics.jsonl."""
    return list(dict.fromkeys(name for folder in run_folders for name in read_metrics(folder / METRICS)[1]))


def workspace(metrics: Sequence[str]) -> dict[str, Any]:
    """The view's content: a section of charts for each group of metrics, and one of pictures."""
    sections = [
        _section(title, [_chart(panel) for panel in group]) for title, group in panels(metrics, apart=False).items()
    ]
    pictures = {"viewType": "Media Browser", "config": {"mediaKeys": [PICTURES], "columnCount": 1}}
    sections.insert(1, _section("Pictures", [pictures]))
    return {
        "section": {
            "name": "",
            "panelBankConfig": {
                "state": 1,
                "settings": {"autoOrganizePrefix": 1, "showEmptySections": False, "sortAlphabetically": False},
                "sections": sections,
            },
            "panelBankSectionConfig": {
                "name": "Report Panels", "isOpen": False, "panels": [], "type": "grid", "flowConfig": _flow(),
                "sorted": 0, "localPanelSettings": _settings(),
            },
            "customRunColors": {},
            "runSets": [_run_set()],
            "settings": _settings() | {"shouldAutoGeneratePanels": True},
            "openRunSet": 0,
            "openViz": True,
        },
        "vizExpanded": False,
        "libraryExpanded": True,
    }  # fmt: skip


def _section(title: str, contents: Sequence[dict[str, Any]]) -> dict[str, Any]:
    panels_of_section = [
        {"__id__": f"{title}-{i}".lower().replace(" ", "-"), "layout": _place(i), **content}
        for i, content in enumerate(contents)
    ]
    return {
        "name": title, "isOpen": True, "type": "flow", "flowConfig": _flow(), "sorted": 0,
        "localPanelSettings": _settings(), "panels": panels_of_section,
    }  # fmt: skip


def _chart(panel: Panel) -> dict[str, Any]:
    """Lines over steps; those of a family by a pattern, so that later sources and ranks are in it too."""
    config: dict[str, Any] = {
        "chartTitle": panel.title, "xAxis": X_AXIS, "metrics": list(panel.members), "yLogScale": panel.logarithmic,
    }  # fmt: skip
    if panel.pattern is not None:
        config |= {"useMetricRegex": True, "metricRegex": f"^{panel.pattern}$"}
    return {"viewType": "Run History Line Plot", "config": config}


def _place(i: int) -> dict[str, int]:
    """Of three panels a row."""
    return {"x": 8 * (i % 3), "y": 6 * (i // 3), "w": 8, "h": 6}


def _flow() -> dict[str, Any]:
    return {
        "snapToColumns": True, "columnsPerPage": 3, "rowsPerPage": 2, "gutterWidth": 16, "boxWidth": 460,
        "boxHeight": 300,
    }  # fmt: skip


def _settings() -> dict[str, Any]:
    return {
        "xAxis": X_AXIS, "xAxisActive": False, "smoothingType": "average", "smoothingWeight": 10,
        "smoothingActive": True, "ignoreOutliers": True, "useRunsTableGroupingInPanels": True,
    }  # fmt: skip


def _run_set() -> dict[str, Any]:
    """All runs of the project, the newest first."""
    return {
        "id": NAME, "name": "Run set", "enabled": True, "search": {"query": ""}, "grouping": [],
        "runFeed": {
            "version": 2, "columnVisible": {"run:name": False}, "columnPinned": {}, "columnWidths": {},
            "columnOrder": [], "pageSize": 10, "onlyShowSelected": False,
        },
        "filters": {"op": "OR", "filters": [{"op": "AND", "filters": []}]},
        "sort": {"keys": [{"key": {"section": "run", "name": "createdAt"}, "ascending": False}]},
        "selections": {"root": 1, "bounds": [], "tree": []},
        "expandedRowAddresses": [],
    }  # fmt: skip
