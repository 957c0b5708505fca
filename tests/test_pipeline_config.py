"""Config: every preset loads, overrides work everywhere, and everything wrong is said at once."""

import os
import re

import pytest
from token_helpers import write_shards

from flows.dag import stages, trains
from pipeline.config.resources import Resources
from pipeline.config.toml import written
from pipeline.config.tree import ConfigError, about, load, options, presets
from pipeline.sources.state import SourceChanged
from storage.digest import canonical_json
from tasks.running.sources import asked, notes, unchanged


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


def test_an_address_with_a_password_is_refused_and_not_repeated():
    planted = [
        "sample.judge_url=https://me:hunter2@judge/v1",
        'ingest.sources=["a.jsonl", "s3://key:hunter2@bucket/x"]',
    ]
    with pytest.raises(ConfigError) as error:
        load("tiny", planted)
    said = str(error.value)
    assert "judge_url" in said and "sources" in said and "environment" in said and "hunter2" not in said
    assert load("tiny", ["sample.judge_url=http://judge:8000/v1", "ingest.sources=s3://bucket/a@b"])


def test_a_list_of_any_option_may_be_written_with_commas():
    config = load("tiny", ["quantize.forms=int8,gguf:q8_0", "language.keep=zh", "rl.tasks=spelling, reverse"])
    assert config.quantize.forms == ["int8", "gguf:q8_0"] and tuple(config.language.keep) == ("zh",)
    assert list(config.rl.tasks) == ["spelling", "reverse"]


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


def test_types_ranges_names_and_files_come_in_one_wave(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError) as caught:
        asked(
            "tiny",
            [
                "pretrain.steps=many",
                "pretrain.model.heads=x",
                "pretrain.model.ffn=-1",
                "pretrain.optim.decay=[]",
                "pretrain.optim.beta1=7",
                "shard.val_share=3",
                "ingest.sources=/none.jsonl",
                "sft.sources=/neither.jsonl",
                "sft.distill.teacher=/no-model",
                "resources.device=cuda",
            ],
            here=True,
        )
    lines = caught.value.problems
    wanted = ("steps", "heads", "ffn", "decay", "beta1", "val_share", "/none", "/neither", "/no-model", "device=cuda")
    assert [word for word in wanted if not any(word in line for line in lines)] == []
    assert len(lines) == len(wanted), lines


def test_a_wrong_value_does_not_blame_its_neighbours():
    with pytest.raises(ConfigError) as caught:
        load("tiny", ["pretrain.model.dim=wide", "pretrain.model.heads=7", "pretrain.model.kv_heads=7"])
    assert len(caught.value.problems) == 1 and caught.value.problems[0].startswith("pretrain.model.dim")


@pytest.mark.parametrize(
    ("override", "meant"),
    [
        ("pretrain.lr=3", "pretrain.optim.lr"),
        ("sft.layers=2", "pretrain.model.layers"),
        ("ingest.workers=2", "resources.workers"),
    ],
)
def test_an_option_at_the_wrong_place_is_told_where_it_is(override, meant):
    with pytest.raises(ConfigError, match=rf"unknown key; did you mean {re.escape(meant)}\?"):
        load("tiny", [override])


def test_a_device_is_missed_before_any_data_is_prepared(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(ConfigError, match=r"resources\.device=cuda, but this machine shows no GPU"):
        asked("gpu", here=True)
    assert not trains("encode") and trains("pretrain") and trains(None)
    asked("gpu", ["resources.device=auto"], here=True)


def test_weights_of_sources_that_were_not_asked_for_are_noted_and_slips_refused(tmp_path):
    for name in ("mine.jsonl", "books.jsonl"):
        (tmp_path / name).write_text('{"text": "a"}\n')
    sources = f"ingest.sources={tmp_path}/mine.jsonl,{tmp_path}/books.jsonl"
    told = notes(*asked("tiny", [sources]))
    assert len(told) == 1 and "teaching" in told[0] and "no effect" in told[0]
    assert notes(*asked("tiny")) == []
    with pytest.raises(ConfigError, match=r"no source is named boks.jsonl; did you mean books.jsonl\?"):
        asked("tiny", [sources, 'shard.weights={"boks.jsonl" = 2}'])


def test_missing_chats_are_one_problem():
    with pytest.raises(ConfigError) as caught:
        asked("tiny", ["sft.sources=/none.jsonl"])
    assert len(caught.value.problems) == 1
    with pytest.raises(ConfigError, match=r"dpo\.sources  preferences are learnt by a chat model"):
        asked("tiny", ["sft.sources=[]"])


@pytest.mark.parametrize("name", presets())
def test_a_printed_config_is_a_preset(name, tmp_path):
    changed = ['ingest.sample={"a b" = 0.5}', 'export.title="说 \\"x\\""', 'clean.disabled_rules=["html"]']
    config = load(name, changed)
    (tmp_path / "again.toml").write_text(written(config, name, changed), "utf-8")
    assert load(str(tmp_path / "again.toml")) == config


def test_a_preset_stands_on_a_base(tmp_path):
    (tmp_path / "mine.toml").write_text(
        'base = "tiny"\n[pretrain]\noptim = { lr = 1e-3 }\n[shard]\nweights = { mine = 2 }\n', "utf-8"
    )
    (tmp_path / "top.toml").write_text('about = "x"\nbase = "mine.toml"\n[pretrain]\nsteps = 7\n')
    tiny, config = load("tiny"), load(str(tmp_path / "top.toml"))
    assert (config.pretrain.steps, config.pretrain.optim.lr) == (7, 1e-3)
    assert config.pretrain.optim.decay == tiny.pretrain.optim.decay and config.pretrain.model == tiny.pretrain.model
    assert config.shard.weights == {"mine": 2} and config.sft == tiny.sft
    (tmp_path / "a.toml").write_text('base = "b.toml"\n')
    (tmp_path / "b.toml").write_text('base = "a.toml"\n')
    for base, problem in (
        ('"b.toml"', "leads back to itself"),
        ('"tinny"', "did you mean tiny"),
        ("3", "is the name of"),
    ):
        (tmp_path / "a.toml").write_text(f"base = {base}\n")
        with pytest.raises(ConfigError, match=problem):
            load(str(tmp_path / "a.toml"))


def test_options_are_listed_with_their_paths():
    known = options()
    assert known["pretrain.optim.lr"] == 3e-3 and "shard.weights" in known and len(known) > 150


def test_earlier_documents_are_confirmed_after_they_were_read(tmp_path):
    part = write_shards(tmp_path, [("a text", "en")]) / "train" / "part-00000.parquet"
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    only = [f"ingest.sources={tmp_path / 'a.jsonl'}", "sft.sources=[]", "dpo.sources=[]", "evaluate.sources=[]"]
    _, inputs = asked("tiny", [*only, f"dedup.against={part.parent}", "shard.weights={}"])
    assert inputs.against and inputs.against.listings()[0]["files"][0]["path"] == part.name
    with unchanged(inputs.against):
        os.utime(part.parent)
    with pytest.raises(SourceChanged, match="part-00000"), unchanged(inputs.against):
        part.write_bytes(part.read_bytes())
