"""The harness' own client asks this package's model: its numbers are those computed by hand."""

import json
import subprocess
import sys

import jinja2
import keras
import numpy as np
import pytest
from keras import ops

import keras_rgemma

lm_eval = pytest.importorskip("lm_eval")

from lm_eval.tasks import TaskManager  # noqa: E402

from harness_tasks import PROMPTS, QUESTIONS, TEXTS, write_tasks  # noqa: E402
from keras_rgemma.evaluation.harness import HarnessModel  # noqa: E402


@pytest.fixture(scope="module")
def lm():
    return keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return write_tasks(tmp_path_factory.mktemp("tasks"))


def evaluate(model, tasks, name, **options):
    return lm_eval.simple_evaluate(
        model=model,
        tasks=[name],
        task_manager=TaskManager(include_path=str(tasks), include_defaults=False),
        bootstrap_iters=0,
        log_samples=True,
        **options,
    )


def responses(result, name):
    """The answers of a model to each document, in the order of documents."""
    samples = sorted(result["samples"][name], key=lambda sample: sample["doc_id"])
    return [[answer for (answer, *_) in sample["resps"]] for sample in samples]


def log_probability(lm, context, continuation):
    """Sums by hand what the whole row of logits says of the last tokens of a text."""
    tokenizer = lm.preprocessor.tokenizer
    before, ids = (
        [tokenizer.start_token_id, *np.asarray(tokenizer(x)).tolist()]
        for x in (context, context + continuation)
    )
    pads = [(0, 0), (0, -len(ids) % 64)]  # rows of few lengths: each is compiled by JAX
    inputs = {"token_ids": np.array([ids]), "padding_mask": np.ones((1, len(ids)), "int32")}
    logits = lm({name: np.pad(x, pads) for name, x in inputs.items()})
    logs = ops.convert_to_numpy(ops.log_softmax(ops.cast(logits, "float32"), axis=-1))[0]
    places = range(len(before) - 1, len(ids) - 1)
    total = sum(float(logs[place, ids[place + 1]]) for place in places)
    return total, all(logs[place].argmax() == ids[place + 1] for place in places)


@pytest.mark.parametrize("num_fewshot", [0, 3])
@pytest.mark.parametrize("shares_prefixes", [True, False])
def test_multiple_choice(lm, tasks, num_fewshot, shares_prefixes):
    model = HarnessModel(lm, batch_size=3, shares_prefixes=shares_prefixes)
    result = evaluate(model, tasks, "rgemma_choice", num_fewshot=num_fewshot)
    samples = sorted(result["samples"]["rgemma_choice"], key=lambda sample: sample["doc_id"])
    hits = 0
    for (question, choices, answer), sample in zip(QUESTIONS, samples, strict=True):
        asked = [tuple(pair) for pair in sample["arguments"]]
        assert [continuation for _, continuation in asked] == [f" {x}" for x in choices]
        assert all(x.endswith(f"Question: {question}\nAnswer:") for x, _ in asked)
        assert all(x.count("Question:") == num_fewshot + 1 for x, _ in asked)
        expected = [log_probability(lm, *pair) for pair in asked]
        totals = [total for total, _ in expected]
        answers = [response for (response,) in sample["resps"]]
        np.testing.assert_allclose([float(total) for total, _ in answers], totals, 1e-4, 1e-4)
        assert [str(x) == "True" for _, x in answers] == [x for _, x in expected]
        hits += int(np.argmax(totals)) == answer
    assert result["results"]["rgemma_choice"]["acc,none"] == hits / len(QUESTIONS)


def test_rolling(lm, tasks):
    result = evaluate(HarnessModel(lm, batch_size=2), tasks, "rgemma_rolling")
    losses = ops.convert_to_numpy(lm.score(TEXTS, scoring_mode="loss")).sum(axis=1)
    bits = losses.sum() / np.log(2) / sum(len(text.encode()) for text in TEXTS)
    found = result["results"]["rgemma_rolling"]["bits_per_byte,none"]
    np.testing.assert_allclose(found, bits, rtol=1e-5)


def test_generation(lm, tasks):
    result = evaluate(HarnessModel(lm, batch_size=2), tasks, "rgemma_generation")
    expected = [
        lm.generate(prompt, max_new_tokens=12, stop=["\n", ","], strip_prompt=True)
        for prompt in PROMPTS
    ]
    assert [answer for (answer,) in responses(result, "rgemma_generation")] == expected


def test_answers_go_on_from_what_contexts_share(lm, monkeypatch):
    from lm_eval.api.instance import Instance

    shared = "And it came to pass in those days, " * 12
    requests = [
        Instance("generate_until", {}, (shared + prompt, {"until": ["\n"], "max_gen_toks": 8}), i)
        for i, prompt in enumerate([*PROMPTS, ""])
    ]
    apart = HarnessModel(lm, batch_size=3, shares_prefixes=False).generate_until(requests)
    prefill, read = lm.prefill, []
    monkeypatch.setattr(lm, "prefill", lambda x, **k: read.append(len(x)) or prefill(x, **k))
    assert HarnessModel(lm, batch_size=3).generate_until(requests) == apart
    assert len(read) == 1 and read[0] > 64


def test_a_sampler_is_that_of_the_task(lm):
    from lm_eval.api.instance import Instance

    model = HarnessModel(keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en"), batch_size=4)

    def answers(**options):
        options |= {"max_gen_toks": 12}
        return model.generate_until([Instance("generate_until", {}, ("And", options), 0)] * 4)

    assert len({*answers(do_sample=True, temperature=1.0, top_p=0.95)}) > 1
    assert len({*answers(temperature=0.0)}) == 1
    with pytest.raises(ValueError, match="num_beams"):
        answers(num_beams=3)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="one backend suffices")
def test_the_command(tasks, tmp_path):
    command = [sys.executable, "-m", "keras_rgemma.cli", "lm-eval", "--tasks", "rgemma_choice"]
    command += ["--include_path", str(tasks), "--batch_size", "4", "--limit", "2"]
    command += ["--model_args", "pretrained=rgemma_tiny_en", "--output_path", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "rgemma_choice" in done.stdout and "keras-rgemma" in done.stdout
    (written,) = (tmp_path / "out").rglob("results_*.json")
    assert "acc,none" in json.loads(written.read_text(encoding="utf-8"))["results"]["rgemma_choice"]


MESSAGES = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": " What is a fox? "},
    {"role": "assistant", "content": "An animal."},
    {"role": "user", "content": "And a river?"},
]


def test_a_chat_template_gives_the_tokens_of_a_chat(lm):
    model = HarnessModel(lm)
    text = model.apply_chat_template(MESSAGES)
    chat = lm.chat(history=MESSAGES[:3], max_new_tokens=4)
    answer = chat.send(MESSAGES[3]["content"])
    assert lm.generate(text, max_new_tokens=4, strip_prompt=True).strip() == answer.strip()
    turns = jinja2.Environment().from_string(model.chat_template(True))
    written = turns.render(messages=MESSAGES, bos_token="", add_generation_prompt=True)
    assert text == written
    opened = model.apply_chat_template(MESSAGES[:3], add_generation_prompt=False)
    assert opened.endswith("<start_of_turn>model\nAn animal.")
    with pytest.raises(ValueError, match="Received: 'default'"):
        model.chat_template("default")


def test_few_shots_are_turns_of_a_conversation(lm, tasks):
    options = {"num_fewshot": 2, "apply_chat_template": True, "system_instruction": "Be brief."}
    result = evaluate(HarnessModel(lm, batch_size=3), tasks, "rgemma_choice", **options)
    for sample in result["samples"]["rgemma_choice"]:
        for pair, ((total, _),) in zip(sample["arguments"], sample["resps"], strict=True):
            context = pair[0]
            assert context.startswith("<start_of_turn>user\nBe brief.\n\nQuestion:")
            assert context.count("<start_of_turn>model\n") == 3
            expected, _ = log_probability(lm, *pair)
            np.testing.assert_allclose(float(total), expected, 1e-4, 1e-4)


def test_a_vocabulary_without_turns_takes_no_chat_template(lm, monkeypatch):
    tokenizer = lm.preprocessor.tokenizer
    monkeypatch.setattr(type(tokenizer), "token_to_id", lambda self, token: 3)
    with pytest.raises(ValueError, match="vocabulary has no <start_of_turn> and <end_of_turn>"):
        HarnessModel(lm).apply_chat_template(MESSAGES)


def test_another_model_of_keras_hub(tasks):
    import keras_hub

    mine = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    size = mine.preprocessor.tokenizer.vocabulary_size()
    backbone = keras_hub.models.GemmaBackbone(size, 1, 2, 1, 16, 32, 8)
    tokenizer = keras_hub.models.GemmaTokenizer(mine.preprocessor.tokenizer.proto)
    preprocessor = keras_hub.models.GemmaCausalLMPreprocessor(tokenizer, sequence_length=64)
    gemma = keras_hub.models.GemmaCausalLM(backbone, preprocessor)
    model = HarnessModel(gemma, batch_size=3)
    result = evaluate(model, tasks, "rgemma_choice", num_fewshot=1)
    for sample in result["samples"]["rgemma_choice"]:
        for pair, ((total, _),) in zip(sample["arguments"], sample["resps"], strict=True):
            expected, _ = log_probability(gemma, *pair)
            np.testing.assert_allclose(float(total), expected, 1e-4, 1e-4)
    written = responses(evaluate(model, tasks, "rgemma_generation"), "rgemma_generation")
    assert len(written) == len(PROMPTS) and not any("\n" in text for (text,) in written)


@pytest.mark.skipif(keras.config.backend() != "torch", reason="transformers computes on PyTorch")
def test_the_harness_own_model_of_transformers_agrees(lm, tasks, tmp_path):
    lm.export_to_transformers(tmp_path / "exported")
    arguments = {"pretrained": str(tmp_path / "exported"), "device": "cpu", "dtype": "float32"}
    arguments |= {"add_bos_token": True, "batch_size": 1}
    theirs = evaluate("hf", tasks, "rgemma_choice", model_args=arguments)
    mine = evaluate(HarnessModel(lm, batch_size=3), tasks, "rgemma_choice")
    pairs = zip(*(responses(x, "rgemma_choice") for x in (mine, theirs)), strict=True)
    for found, expected in pairs:
        for (total, likeliest), (their_total, their_likeliest) in zip(found, expected, strict=True):
            assert abs(float(total) - float(their_total)) < 1e-3
            assert str(likeliest) == str(their_likeliest)


def test_a_missing_harness_and_bad_arguments_are_named(lm, monkeypatch, capsys):
    from keras_rgemma.cli import main

    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "lm_eval", None)
        assert main(["lm-eval", "--tasks", "piqa"]) == 1
    assert 'pip install "keras-rgemma[eval]"' in capsys.readouterr().err
    with pytest.raises(ValueError, match="must be a positive integer"):
        HarnessModel(lm, batch_size="x")
    assert HarnessModel(lm, batch_size="auto:4").batch_size == 8
    with pytest.raises(ValueError, match="pretrained=rgemma_2b_en"):
        HarnessModel()
    with pytest.raises(ValueError, match="Received: 'flax'"):
        HarnessModel("rgemma_tiny_en", library="flax")
    with pytest.raises(ValueError, match="needs a preprocessor"):
        HarnessModel(keras_rgemma.RGemmaCausalLM(lm.backbone, preprocessor=None))
