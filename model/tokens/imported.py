"""What a tokenizer of others brings, looked at before anything is trained: can its ids be carried, and can
conversations be trained as its chat template writes them?
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from model.tokens.chat import ChatTokenizer
from model.tokens.jinja import TemplateRefuses
from model.tokens.theirs import foreign_template, special_texts
from model.tokens.turns import CHAT_SPECIALS, Message

if TYPE_CHECKING:
    from tokenizers import Tokenizer

_TEXTS = ("What is a token?", "什么是词元？", "1 + 1 = ?", "(a)\n\n- b\n", "<b>é</b>", "'s")
OWN = "set tokenizer.template=own to train and export in our chat format instead"


def with_chat_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, with the chat tokens that it lacks added at the end."""
    from tokenizers import AddedToken

    _bare(tokenizer)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in CHAT_SPECIALS])
    return tokenizer


def _bare(tokenizer: Tokenizer) -> Tokenizer:
    """The tokenizer itself, which no longer cuts or pads."""
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def read_tokenizer(text: str, where: str, *, chat_tokens: bool = True) -> Tokenizer:
    """The tokenizer of a ``tokenizer.json`` text, with the tokens of our chat format. Raises ValueError when it is
    none."""
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(text)
        return with_chat_tokens(tokenizer) if chat_tokens else _bare(tokenizer)
    except Exception as error:  # tokenizers raises bare Exception
        raise ValueError(f"{where}: not a readable tokenizer.json: {error}") from error


def check_conversations(text: str, folder: Path, where: str, *, own: bool) -> None:
    """Raises ValueError when conversations cannot be trained with a tokenizer (``text`` of its ``tokenizer.json``): its
    chat template in ``folder`` does not allow it (which ``own`` leaves aside), or a conversation has other ids piece by
    piece, as it is trained and asked, than as one text, as every other engine encodes it: a tokenizer that puts a blank
    before each text, for one."""
    names = special_texts(folder)
    template = None if own else foreign_template(folder, names)
    tokenizer = read_tokenizer(text, where, chat_tokens=template is None)
    try:
        chat = ChatTokenizer(tokenizer, template, names)
        for said in _TEXTS:
            messages: list[Message] = [{"role": "user", "content": said}, {"role": "assistant", "content": said}]
            rendered = "".join(f"<|im_start|>{m['role']}\n{m['content'].strip()}<|im_end|>\n" for m in messages)
            whole = chat.foreign.text(messages).text if chat.foreign else rendered
            ids, _ = chat.chat(messages)
            tokenizer.encode_special_tokens = False
            expected = tokenizer.encode(whole, add_special_tokens=False).ids
            tokenizer.encode_special_tokens = True
            if ids != expected:
                raise ValueError(
                    f"{where}: a conversation has other ids in pieces than as a whole (it adds a blank before every"
                    " text, or merges across turns), so that no other engine would encode it as it was trained; take a"
                    " byte-level tokenizer without prefix space, or train one (tokenizer.existing= empty)"
                )
    except TemplateRefuses as error:
        raise ValueError(f"{where}: its chat template cannot be trained in: {error}; {OWN}") from None
