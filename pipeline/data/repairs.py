"""Repairs of a single text: HTML to main text, mojibake, control characters, Unicode NFC, white space, and masking of
personal data.

The clean stage calls each only where a cheap test says that there is something to do.
"""

from __future__ import annotations

import ipaddress
import re
import unicodedata
from functools import lru_cache

_PAGE = re.compile(r"<!doctype html|<html|<head|<body", re.I)
_BLOCK = re.compile(r"</(?:p|div|li|td|tr|h[1-6]|ul|table|article|section)>|<br\s*/?>", re.I)
# C0 and C1 controls, soft hyphen, zero-width and directional marks, tags, lone surrogates. Joiners only next to ASCII,
# Chinese, Japanese or Korean: emoji sequences and Indic, Arabic-script and Khmer spelling need theirs.
_CONTROL = re.compile(
    "[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u00ad\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u2064\u2066-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0001-\U000e007f]+"
)
_JOINER = re.compile(
    "(?<=[\x00-\u024f\u2e80-\u9fff\uac00-\ud7af])[\u200c\u200d]+|[\u200c\u200d]+(?=[\x00-\u024f\u2e80-\u9fff\uac00-\ud7af]|$)"
)
_ODD_SPACE = re.compile("[\u00a0\u1680\u2000-\u200a\u202f\u205f]")
_SPACED_END = re.compile("\n(?<=[ \t\u3000]\n)")
_BLANK_LINES = re.compile(r"\n{3,}")

_EMAIL_NAME = re.compile(r"[A-Za-z0-9._%+-]{1,64}$")
_EMAIL_HOST = re.compile(r"(?:[A-Za-z0-9-]{1,63}\.){1,4}[A-Za-z]{2,24}(?![A-Za-z0-9])")
# Each pattern below starts with one character class and looks behind afterwards: the engine then skips to candidates
# quickly.
_ID_CARD = re.compile(
    r"[1-9](?<!\d.)\d{5}(?:19|20)\d\d(?:0[1-9]|1[0-2])(?:0[1-9]|[12]\d|3[01])\d{3}[\dXx](?![\dA-Za-z])"
)
_PHONE = re.compile(
    r"[0-9+(](?:(?<=\d)(?<![A-Za-z0-9_./=+-].)(?:"
    # Chinese mobile
    r"(?<=1)[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![\d.]*\d)|(?<=8)6[- ]?1[3-9]\d[- ]?\d{4}[- ]?\d{4}(?![\d.]*\d)"
    r"|(?<=0)\d{2,3}- ?\d{7,8}(?![\d-])|(?<=[48])00-\d{3,4}-?\d{3,4}(?![\d-])"  # Chinese landline and service numbers
    r"|(?<=[2-9])\d\d[-. ][2-9]\d\d[-. ]\d{4}(?![\d.-]*\d)|(?<=1)[-. ]\(?[2-9]\d\d\)?[-. ][2-9]\d\d[-."
    r" ]\d{4}(?![\d.-]*\d))"  # North America
    r"|(?<=[+(])(?<![A-Za-z0-9_.].)(?:"
    r"(?<=\()0\d{2,3}\) ?\d{7,8}(?![\d-])|(?<=\()[2-9]\d\d\) ?[2-9]\d\d[-. ]\d{4}(?![\d.-]*\d)"
    r"|(?<=\+)\d{1,3}[- .]?(?:\(\d{1,4}\)[- .]?)?\d{2,4}(?:[- .]?\d{2,4}){2,4}(?!\d)))"  # international
)
_IPV4 = re.compile(r"\d(?<![A-Za-z0-9_.].)\d{0,2}(?:\.\d{1,3}){3}(?!\.?\d)")
_IPV6 = re.compile(r"[23](?<![A-Za-z0-9_:].)[0-9A-Fa-f]{3}:(?:[0-9A-Fa-f]{0,4}:){1,6}[0-9A-Fa-f]{0,4}(?![\w:])")
_ID_WEIGHTS = (7, 9, 10, 5, 8, 4, 2, 1, 6, 3, 7, 9, 10, 5, 8, 4, 2)


def is_html(text: str) -> bool:
    """True for a page or a large fragment of one: it starts with a tag and declares a page, or is dense in block
    tags."""
    head = text[:2000].lstrip()
    if not head.startswith("<"):
        return False
    return bool(_PAGE.search(head[:1000])) or len(_BLOCK.findall(head)) >= max(5, len(head) // 200)


def main_text(page: str) -> str:
    """The main text of an HTML page: resiliparse first, trafilatura (ten times slower, more careful) where that looks
    noisy."""
    from resiliparse.extract.html2text import extract_plain_text

    quick = extract_plain_text(page, main_content=True, alt_texts=False, links=False, form_fields=False, noscript=False)
    if not _looks_noisy(quick, page):
        return quick
    import trafilatura

    careful = trafilatura.extract(page, fast=True, include_comments=False, include_tables=True) or ""
    return careful if len(careful) > len(quick) or (quick and len(careful) > 0.4 * len(quick)) else quick


def _looks_noisy(text: str, page: str) -> bool:
    """Nothing found on a page that has paragraphs, or mostly short lines that end no sentence (menus, link lists)."""
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        return bool(re.search(r"<p\b|<article\b|<br\b", page, re.I))
    furniture = sum(len(line) for line in lines if len(line) < 40 and line[-1] not in ".!?。！？…：:;；，,")
    return len(lines) >= 5 and furniture > 0.35 * sum(map(len, lines))


@lru_cache(1)
def _encoding_only():
    """ftfy with everything off but wrong decoding: its other fixes rewrite Chinese punctuation and quotes."""
    import ftfy

    return ftfy.TextFixerConfig(
        unescape_html=False,
        remove_terminal_escapes=False,
        fix_latin_ligatures=False,
        fix_character_width=False,
        uncurl_quotes=False,
        fix_line_breaks=False,
        fix_surrogates=False,
        remove_control_chars=False,
        normalization=None,
        explain=False,
        fix_encoding=True,
        restore_byte_a0=True,
        replace_lossy_sequences=True,
        decode_inconsistent_utf8=True,
        fix_c1_controls=True,
    )


def repair_mojibake(text: str) -> str:
    """The text decoded as it should have been, when that is certain; otherwise the text as it is.

    Tried in turn: UTF-8 read as Latin-1 (exact), UTF-8 read as GBK, GBK read as Latin-1, and ftfy for everything else
    (mixtures, Windows-1252).
    """
    for wrong, right in (("latin-1", "utf-8"), ("gb18030", "utf-8"), ("latin-1", "gb18030")):
        try:
            fixed = text.encode(wrong).decode(right)
        except UnicodeError:
            continue
        if fixed != text if right == "utf-8" else _is_common_chinese(fixed):
            return fixed
    import ftfy

    return ftfy.fix_text(text, _encoding_only())


def _is_common_chinese(text: str) -> bool:
    """Mostly Chinese characters of GB2312's first level (the 3,755 most used), as a wrong decoding hardly ever is."""
    han = [c for c in text if "\u4e00" <= c <= "\u9fff"]
    common = sum(1 for c in han if b"\xb0" <= c.encode("gb18030")[:1] <= b"\xd7")
    return len(han) >= 4 and len(han) > 0.3 * len(text) and common > 0.9 * len(han)


def strip_controls(text: str) -> str:
    """Without control, zero-width and directional characters (line breaks and tabs stay; carriage returns become line
    breaks)."""
    if "\r" in text:
        text = text.replace("\r\n", "\n").replace("\r", "\n")
    text = _CONTROL.sub("", text)
    return _JOINER.sub("", text) if "\u200c" in text or "\u200d" in text else text


def nfc(text: str) -> str:
    """Unicode normal form C."""
    return unicodedata.normalize("NFC", text)


def tidy(text: str) -> str:
    """Odd spaces to spaces, no space at line ends, one blank line at most, nothing around the text. Indentation
    stays."""
    if not text.isascii():
        text = _ODD_SPACE.sub(" ", text.replace("\u2028", "\n").replace("\u2029", "\n"))
    pieces, done = [], 0
    for end in _SPACED_END.finditer(text):
        pieces.append(text[done : end.start()].rstrip(" \t\u3000"))
        done = end.start()
    text = "".join(pieces) + text[done:]
    if "\n\n\n" in text:
        text = _BLANK_LINES.sub("\n\n", text)
    return text.strip("\n").rstrip()


def mask_email(text: str) -> str:
    """E-mail addresses, found from their @ (ten times faster than one pattern); ``git@`` of repository URLs names
    nobody."""
    pieces, done, at = [], 0, text.find("@")
    while at >= 0:
        name, host = _EMAIL_NAME.search(text[max(done, at - 64) : at]), _EMAIL_HOST.match(text, at + 1)
        if name and host and name[0] != "git":
            pieces += text[done : at - len(name[0])], "<EMAIL>"
            done = host.end()
        at = text.find("@", max(at + 1, done))
    return "".join(pieces) + text[done:] if pieces else text


def mask_id_card(text: str) -> str:
    """Chinese resident identity numbers with a valid check digit (GB 11643-1999)."""
    return _ID_CARD.sub(lambda m: "<ID_CARD>" if _checked(m[0]) else m[0], text)


def _checked(number: str) -> bool:
    return "10X98765432"[sum(int(d) * w for d, w in zip(number, _ID_WEIGHTS, strict=False)) % 11] == number[-1].upper()


def mask_phone(text: str) -> str:
    return _PHONE.sub("<PHONE>", text)


def mask_ipv4(text: str) -> str:
    """Public IPv4 addresses; private, loopback and documentation ranges name nobody and stay."""
    return _IPV4.sub(_public, text)


def mask_ipv6(text: str) -> str:
    """Public IPv6 addresses, as :func:`mask_ipv4`."""
    return _IPV6.sub(_public, text)


def _public(match: re.Match[str]) -> str:
    try:
        return "<IP>" if ipaddress.ip_address(match[0]).is_global else match[0]
    except ValueError:
        return match[0]
