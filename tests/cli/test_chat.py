"""`keras-rgemma chat` begins a conversation with instructions, or goes on with one."""

import pytest

from backend_independent import backend_independent
from keras_rgemma import RGemmaCausalLM
from keras_rgemma.cli import main


@backend_independent
def test_instructions_go_in_front_of_the_first_message(monkeypatch, capsys, tmp_path):
    messages = ["Hi", "And?"]
    lines = iter([*messages, f"/save {tmp_path / 'chat'}", "/quit"])
    monkeypatch.setattr("builtins.input", lambda prompt: next(lines))
    assert main(["chat", "--system", "Be kind.", "--max-new-tokens", "4"]) == 0
    lm = RGemmaCausalLM.from_preset("rgemma_tiny_en")
    chat = lm.chat([{"role": "system", "content": "Be kind."}], max_new_tokens=4)
    answers = [chat.send(message) for message in messages]
    assert capsys.readouterr().out.startswith("\n".join(answers) + "\n")
    assert lm.load_chat(tmp_path / "chat").history == chat.history
    assert chat.history[0]["content"] == "Be kind.\n\nHi"


@backend_independent
def test_a_conversation_that_was_saved_has_its_own_beginning(capsys):
    with pytest.raises(SystemExit):
        main(["chat", "--system", "Be kind.", "--load", "chat"])
    assert "not allowed with" in capsys.readouterr().err
