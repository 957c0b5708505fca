import io
import subprocess
import sys

import pytest
from token_helpers import FACTS, taught_dir

from flows.cli import main
from model import chat as chat_module
from model.chat import Chat, converse


def test_chat_prints_the_answer_and_nothing_else(capsys):
    command = [sys.executable, "-m", "flows.cli", "chat"]
    told = ["--prompt", "什么是词元？", "--temperature", "1", "--top-k", "1", "--top-p", "0.9"]
    done = subprocess.run([*command, str(taught_dir()), *told], capture_output=True, text=True, check=True)
    assert done.stdout == FACTS["什么是词元？"] + "\n" and str(taught_dir()) in done.stderr
    for wrong in (
        ["no-such-directory"],
        [str(taught_dir()), "--top-k", "3"],
        [str(taught_dir()), "--temperature", "-1"],
    ):
        with pytest.raises(SystemExit) as refused:
            main(["chat", *wrong, "--prompt", "x"])
        assert refused.value.code == 2 and "error: " in capsys.readouterr().err


def test_a_conversation_has_commands_and_help(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("/help\n/nonsense\n/quit\n"))
    converse(Chat(taught_dir()))
    said = capsys.readouterr()
    assert said.err.count("/new   start over") == 2 and "/nonsense is no command" in said.err


def test_the_conversation_streams_and_starts_over(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdin", io.StringIO("什么是损失？\n/new\nWhat is loss?\n/quit\n"))
    converse(Chat(taught_dir()))
    said = capsys.readouterr().out
    assert FACTS["什么是损失？"] in said
    assert FACTS["What is loss?"] in said


def test_an_answer_that_is_broken_off_leaves_the_next_one_whole():
    chat = Chat(taught_dir())
    question = [{"role": "user", "content": "什么是损失？"}]
    pieces = chat.stream(question)
    assert next(pieces) and chat.generator.busy
    pieces.close()
    assert not chat.generator.busy and chat.answer(question) == FACTS["什么是损失？"]


def test_old_turns_are_forgotten_when_the_window_is_full():
    chat = Chat(taught_dir())
    turns = [{"role": role, "content": "so many words " * 8} for role in ("user", "assistant")] * 3
    assert chat.answer([*turns, {"role": "user", "content": "什么是词元？"}])
    with pytest.raises(ValueError, match="reads at most"):
        chat.answer([{"role": "user", "content": "word " * 500}])
    assert chat_module.generation_defaults(taught_dir()) == {}
