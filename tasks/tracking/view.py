"""The columns that MLflow's table of runs opens with: a shared view, kept as a tag of the experiment.

MLflow's page takes the state of its table from the tag ``mlflow.sharedViewState.<key>`` when an address names the key
(``viewStateShareKey``); MLflow 3.17 reads it as JSON.
"""

from __future__ import annotations

import json

VIEW = "pipeline"
TAG = f"mlflow.sharedViewState.{VIEW}"
COLUMNS = (
    ("tags", "overrides"),
    ("attributes", "Dataset"),
    ("tags", "model"),
    ("metrics", "bits_per_byte"),
    ("metrics", "answers_heldout"),
    ("metrics", "choices"),
    ("metrics", "preferences"),
    ("metrics", "documents"),
    ("metrics", "training_tokens"),
    ("metrics", "parameters"),
    ("metrics", "stages_built"),
)


def state() -> str:
    """The table's state: whole runs, the newest first, with what tells them apart."""
    table = {
        "searchFilter": "tags.`pipeline.part` = 'run'",
        "orderByKey": "attributes.start_time",
        "orderByAsc": False,
        "startTime": "ALL",
        "lifecycleFilter": "Active",
        "datasetsFilter": [],
        "modelVersionFilter": "All Runs",
        "selectedColumns": [f"{kind}.`{name}`" for kind, name in COLUMNS],
        "viewMaximized": True,
    }
    return json.dumps(table, sort_keys=True)
