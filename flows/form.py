"""What a person fills in to start a run from Prefect's page: the names there are to choose from, and the shape of what
is written by hand. Prefect refuses anything else before a run is made."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from flows.dag import data_names, stage_names
from pipeline.config.tree import presets

LAST_DATA_STAGE = data_names()[-1]

if TYPE_CHECKING:
    PresetName = StageName = DataStage = str
else:
    PresetName = Annotated[Literal[tuple(presets())], Field(title="a preset")]
    StageName = Annotated[Literal[stage_names()], Field(title="a stage")]
    DataStage = Literal[data_names()]

PresetFile = Annotated[str, Field(pattern=r"\.toml$", title="a file", description="a .toml file on the worker")]
Override = Annotated[str, Field(pattern=r"^\s*[a-z]+\.[^=]+=", examples=["pretrain.steps=2000"])]
Where = Literal["here", "full-pipeline/data"]
