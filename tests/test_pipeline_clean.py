"""The clean stage: each rule by name, repairs, masks, chat documents, and the same bytes for any number of workers."""

from __future__ import annotations

import json
import unicodedata
from typing import get_args

import numpy as np
import pytest
from documents import CHINESE, ENGLISH, files, rows, write
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.config.cleaning import CleanSection, RuleName
from pipeline.data import repairs, rules
from pipeline.data.clean import clean
from pipeline.kernels import alphabet, scan
from pipeline.kernels.columns import Stat
from pipeline.kernels.terms import Terms

BROKEN = {
    "empty": "\u200b \n",
    "spam": "澳门新葡京赌场 在线投注 首存送8888元 信誉第一 提款秒到账",
    "too_short": "## Installing the",
    "letters": "12 34 | 56 78 | 90 12 == 34 ++ 56 // 78 || 90 & " * 8 + "and so on",
    "word_length": " ".join("abcdefghij" * 3 + str(i) * 3 for i in range(40)) + ".",
    "symbols": "\n".join(f"see #topic{i} and #tag{i} with #more{i}…" for i in range(30)),
    "bullet_lines": "\n".join(
        f"- the item number {i} of this list says that {i} and {i * 7} are good." for i in range(30)
    ),
    "ellipsis_lines": "\n".join(f"{w} goes on in a text that stops before it is over…" for w in ENGLISH.split()),
    "function_words": " ".join(f"zor{i} bla{i}k wu{i}" for i in range(80)) + ".",
    "lorem_ipsum": ENGLISH + " Lorem ipsum dolor sit amet.",
    "duplicate_lines": "\n".join([ENGLISH, *["Home page of it"] * 9]),
    "duplicate_line_characters": "\n".join(
        [ENGLISH, ENGLISH, *(f"{i} is a line of its own with few words." for i in "abcdefgh")]
    ),
    "top_ngram": "best price " * 12 + ENGLISH,
    "duplicate_ngrams": " ".join(f"{w} {ENGLISH[:180]}" for w in "abcdefg"),
    "sentence_ends": "\n".join(
        f"a menu entry of the kind {w} without an end" for w in ENGLISH.replace(".", "").replace(",", "").split()
    ),
    "short_lines": "\n".join(f"{w} and {w}s" for w in ENGLISH.replace(".", "").replace(",", "").split()),
    "line_breaks": "\n".join(ENGLISH.replace(".", "").replace(",", "").split()),
    "url_share": (
        "The links: " + " ".join(f"https://example.com/{i}/a-rather-long-path-to-some-page-{i}.html" for i in range(20))
    ),
    "unrepaired_text": ENGLISH + "\ufffd\ufffd\ufffd\ufffd",
    "too_long": ENGLISH,
}


def test_rule_names_are_those_of_the_section():
    repaired = ["html", "mojibake", "control_characters", "unicode_nfc", "whitespace", "boilerplate_lines"]
    masked = ["email", "phone", "id_card", "ip_address"]
    assert set(get_args(RuleName)) == {*repaired, *(r.__name__ for r in rules.RULES), *masked}


@pytest.mark.parametrize("rule", [r.__name__ for r in rules.RULES])
def test_each_rule_drops_says_why_and_can_be_switched_off(tmp_path, rule):
    limit = {"max_characters": 100} if rule == "too_long" else {}
    others = [r.__name__ for r in rules.RULES if r.__name__ != rule]
    docs = write(tmp_path / "in", [BROKEN[rule]])
    cfg = CleanSection(disabled_rules=others, **limit)
    stats = clean(cfg, docs, tmp_path / "out")
    assert stats["docs_out"] == 0 and stats[f"dropped/{rule}"] == 1
    samples = [json.loads(line) for line in (tmp_path / "out" / "samples.jsonl").read_text().splitlines()]
    dropped = [s for s in samples if s["rule"] == rule]
    assert dropped[0]["line"] == 1 and dropped[0]["path"] == "f.jsonl" and dropped[0]["why"]
    off = CleanSection(disabled_rules=[*others, rule], **limit)
    assert clean(off, docs, tmp_path / "off")["docs_out"] == 1


PLAIN = [
    ENGLISH,
    CHINESE,
    "寄王樵\n李冠\n霜臺御史新爲郡，棘手廷評繼下車。\n首謁梓桐王處士，教風從此重詩書。",
    "梯度下降沿着损失减小最快的方向更新参数。",
    "The learning rate decides how far each step goes.",
    "澳门的博彩业在十九世纪中叶合法化。"
    + CHINESE * 2
    + "赌场的税收后来成了当地财政的主要来源，历史学家对此有许多研究。",
    "Install it with:\n\n```python\nfor i in range(10):\n    print(f'{i}: {squares[i]}')\n```\n\n" + ENGLISH,
]


@pytest.mark.parametrize("text", PLAIN)
def test_whole_short_sentences_verse_code_and_articles_stay_unchanged(tmp_path, text):
    stats = clean(CleanSection(), write(tmp_path / "in", [text]), tmp_path / "out")
    assert [r["text"] for r in rows(tmp_path / "out")] == [text], stats


def test_repairs_bring_back_the_plain_text(tmp_path):
    article = f"<article><p>{CHINESE}</p><p>{ENGLISH}</p></article>"
    page = (
        f"<!DOCTYPE html><html><body><nav><a href='/'>Home</a></nav>{article}<footer>Copyright</footer></body></html>"
    )
    texts = [
        CHINESE.encode().decode("latin-1"),
        CHINESE.encode("gb18030").decode("latin-1"),
        "\u200b".join(ENGLISH[:40]) + ENGLISH[40:] + "\x07\ufeff",
        unicodedata.normalize("NFD", "Été où naïve façade déjà élève garçon. " + ENGLISH),
        f"{ENGLISH}  \r\n\r\n\r\n\r\n{CHINESE}\u00a0",
        f"{ENGLISH}\n版权所有 © 2024 | 隐私政策 | 联系我们\n{CHINESE}",
        page,
    ]
    stats = clean(CleanSection(), write(tmp_path / "in", texts), tmp_path / "out")
    accents = "Été où naïve façade déjà élève garçon. " + ENGLISH
    expected = [
        CHINESE,
        CHINESE,
        ENGLISH,
        accents,
        f"{ENGLISH}\n\n{CHINESE}",
        f"{ENGLISH}\n{CHINESE}",
        f"{CHINESE}\n\n{ENGLISH}",
    ]
    assert [r["text"] for r in rows(tmp_path / "out")] == expected
    assert {
        "changed/mojibake": 2,
        "changed/html": 1,
        "changed/unicode_nfc": 1,
        "changed/boilerplate_lines": 1,
    }.items() <= stats.items()


def test_personal_data_is_masked_and_what_looks_like_it_stays(tmp_path):
    secret = (
        "Write to ann.lee+x@mail.example.org, 电话13812345678，身份证 11010519491231002X, host 8.8.4.4 or"
        " 2001:4860:4860::8888, +44 20 7946 0958."
    )
    harmless = (
        "git@github.com:a/b.git, 12345678901234, 110105194912310021, 192.168.0.1, version 1.2.3.4.5, 12:30:45,"
        " 2001-01-01 10:20."
    )
    stats = clean(
        CleanSection(), write(tmp_path / "in", [f"{ENGLISH}\n{secret}", f"{ENGLISH}\n{harmless}"]), tmp_path / "out"
    )
    first, second = (r["text"].split("\n")[1] for r in rows(tmp_path / "out"))
    assert first == "Write to <EMAIL>, 电话<PHONE>，身份证 <ID_CARD>, host <IP> or <IP>, <PHONE>."
    assert second == harmless
    assert stats["changed/id_card"] == 1


def test_chat_documents_get_unicode_repairs_only(tmp_path):
    text = "<|im_start|>user\nhi  \n<|im_end|>\n<|im_start|>assistant\n邮箱 a@b.com\u200b<|im_end|>\n"
    clean(CleanSection(), write(tmp_path / "in", [text], kind="chat"), tmp_path / "out")
    assert [r["text"] for r in rows(tmp_path / "out")] == [text.replace("\u200b", "")]


def test_same_bytes_for_any_number_of_workers_and_no_document_unaccounted(tmp_path):
    texts = [*BROKEN.values(), *PLAIN] * 40
    docs = write(tmp_path / "in", texts, parts=3)
    one = clean(CleanSection(), docs, tmp_path / "one")
    two = clean(CleanSection(), docs, tmp_path / "two", workers=2)
    assert one == two and files(tmp_path / "one") == files(tmp_path / "two")
    dropped = sum(n for name, n in one.items() if name.startswith("dropped/"))
    assert one["docs_in"] == len(texts) == one["docs_out"] + dropped


@settings(max_examples=60, deadline=None)
@given(st.lists(st.text(max_size=80), max_size=6))
def test_scan_counts_what_python_counts(texts):
    stats = rules.gather(texts).stats
    classes = alphabet.tables()[0] & alphabet.KIND
    for text, row in zip(texts, stats, strict=True):
        assert (
            row[: alphabet.CLASSES].tolist()
            == np.bincount([classes[ord(c)] for c in text], minlength=alphabet.CLASSES).tolist()
        )
        visible = [c for c in text if classes[ord(c)] not in (alphabet.SPACE, alphabet.NEWLINE, alphabet.CONTROL)]
        assert row[Stat.ENDS_SENTENCE] == bool(visible and visible[-1] in alphabet.TERMINALS)
        assert row[Stat.REPLACED] == text.count("\ufffd")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.text("ab cdA中文赌场\n.", max_size=30), max_size=5),
    st.lists(
        st.text("abcd中文赌场", min_size=2, max_size=4).filter(lambda t: len(t) > 2 or t[0] > "z"),
        min_size=1,
        max_size=6,
        unique=True,
    ),
)
def test_terms_are_counted_as_by_plain_search(texts, terms):
    found = Terms([(t, 0, 1) for t in terms]).points(*alphabet.utf8(texts))[:, 0]

    def count(text: str, term: str) -> int:
        text = "".join(" " if c.isspace() else c.lower() for c in text)
        word = lambda c: c.isascii() and c.isalnum()  # noqa: E731
        at = [i for i in range(len(text)) if text.startswith(term, i)]
        before = [i for i in at if not (i and word(text[i - 1]) and word(term[0]))]
        return sum(
            1 for i in before if not (i + len(term) < len(text) and word(text[i + len(term)]) and word(term[-1]))
        )

    assert found.tolist() == [sum(count(text, term) for term in terms) for text in texts]


@settings(max_examples=80, deadline=None)
@given(st.text(max_size=200))
def test_repairs_never_fail_and_are_stable(text):
    masks = (repairs.mask_email, repairs.mask_phone, repairs.mask_id_card, repairs.mask_ipv4, repairs.mask_ipv6)
    for repair in (repairs.strip_controls, repairs.nfc, repairs.tidy, *masks):
        once = repair(text)
        assert repair(once) == once
    repairs.repair_mojibake(text)
    repairs.main_text(f"<html><body>{text}</body></html>")


@settings(max_examples=80, deadline=None)
@given(
    st.text(
        "e\u0301\u0327\u1100\u1161\u11a8\uac00\u304b\u3099\u09c7\u09be\u2126\uf900\U0001d15e\U00011099\U000110ba中",
        max_size=12,
    )
)
def test_what_normal_form_c_changes_is_noticed(text):
    assert unicodedata.is_normalized("NFC", text) or rules.gather([text])[Stat.UNCOMPOSED][0]


def test_any_text_can_be_measured_and_broken_bytes_read_nothing_beyond_it():
    texts = [
        "",
        " \n\t\u3000",
        "\ud800x\udfff",
        "🧑‍🚀" * 50,
        "مرحبا بالعالم. " * 20,
        "สวัสดีชาวโลก " * 20,
        "字" * 300_000,
        "a" * 1_000_000,
        "a b\n" * 200_000,
    ]
    together = rules.gather(texts)
    for i, text in enumerate(texts):
        alone = rules.gather([text])
        assert np.array_equal(alone.stats[0], together.stats[i]) and np.array_equal(
            alone.repeats[0], together.repeats[i]
        )
        assert alone.characters[0] == len(text)
    data = np.frombuffer("好é😀".encode() * 3, np.uint8)
    for cut in range(len(data)):  # every text but the last ends inside a character
        places = np.array([0, cut, len(data)])
        stats = scan.measure(data, places, rules.lexicon(), np.zeros(16, np.uint64))[0]
        assert stats[:, : alphabet.CLASSES].sum() <= len(data)
