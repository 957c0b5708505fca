"""Config: every preset loads, overrides work everywhere, and everything wrong is said at once."""

import pytest

from flows.dag import stages
from pipeline.config.resources import Resources
from pipeline.config.tree import ConfigError, about, load, presets
from storage.digest import canonical_json


def test_every_preset_is_valid_and_says_what_it_is():
    assert {"tiny", "gpt-teacher", "minimind-small", "minimind2", "gpt2-124m", "gpu"} <= set(presets())
    for name in presets():
        config = load(name)
        assert about(name)
        for stage in stages():
            canonical_json(getattr(config, stage.section).identity())


@pytest.mark.parametrize(
    ("preset", "vocabulary", "low", "high"),
    [
        ("gpt-teacher", 2048, 3.0e6, 4.0e6),
        ("minimind-small", 6400, 25e6, 29e6),
        ("minimind2", 6400, 100e6, 108e6),
        ("gpt2-124m", 50304, 115e6, 128e6),
    ],
)
def test_presets_have_the_size_they_claim(preset, vocabulary, low, high):
    import dataclasses

    model = dataclasses.replace(load(preset).pretrain.model, vocab_size=vocabulary)
    assert low <= model.parameters() <= high


def test_overrides_reach_every_depth():
    config = load(
        "tiny",
        [
            "pretrain.optim.lr=1e-3",
            "pretrain.seed=7",
            "ingest.sources=a.jsonl,b/*.txt",
            "resources.nproc=1",
            "dpo.sources=[]",
            "resources.launcher=deepspeed",
            "sft.optim.lr=0.002",
            "dpo.optim.lr=1e-5",
        ],
    )
    assert config.pretrain.optim.lr == 1e-3 and config.pretrain.seed == 7
    assert list(config.ingest.sources) == ["a.jsonl", "b/*.txt"] and list(config.dpo.sources) == []
    assert config.resources.launcher == "deepspeed" and config.resources.nproc == 1


def test_all_problems_come_at_once_path_first():
    with pytest.raises(ConfigError) as caught:
        load(
            "tiny",
            [
                "pretrain.stpes=3",
                "pretrain.optim.lr=-1",
                "resources.launcher=slurm",
                "pretain.steps=1",
                "nonsense",
                "shard.val_share=3",
                "pretrain.model.dims=4",
            ],
        )
    lines = caught.value.problems
    assert len(lines) == 7
    assert "pretrain.stpes  unknown key; did you mean steps?" in lines
    assert "pretrain.model.dims  unknown key; did you mean dim?" in lines
    assert any(line.startswith("pretrain.optim") and "lr" in line for line in lines)
    assert any(line.startswith("resources.launcher") and "torchrun" in line for line in lines)
    assert any("did you mean pretrain?" in line for line in lines)
    assert any(line.startswith("nonsense") and "section.key=value" in line for line in lines)


def test_an_unknown_preset_names_the_near_one():
    with pytest.raises(ConfigError, match="did you mean tiny"):
        load("tinny")


def test_where_and_how_stay_out_of_the_key():
    config = load("tiny", ["ingest.sources=elsewhere.jsonl"])
    assert "sources" not in config.ingest.identity()
    assert config.ingest.identity() == load("tiny").ingest.identity()
    assert isinstance(config.resources, Resources)


def test_a_preset_can_be_a_file(tmp_path):
    (tmp_path / "mine.toml").write_text('about = "x"\n[pretrain]\nsteps = 5\n')
    assert load(str(tmp_path / "mine.toml")).pretrain.steps == 5
    (tmp_path / "broken.toml").write_text("[pretrain\n")
    with pytest.raises(ConfigError, match="not valid TOML"):
        load(str(tmp_path / "broken.toml"))
