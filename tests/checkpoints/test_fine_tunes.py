"""A model goes to transformers, is fine-tuned or talked to there, and comes back."""

import json

import keras
import pytest
import transformers

import tiny
from keras_rgemma import RGemmaCausalLM

PROMPTS = ("The quick", "What is a river?\n\nA  river", "She sells <start_of_turn>")
NEW = 12
MESSAGES = {
    "one message": [{"role": "user", "content": " Call me, when?\n\n "}],
    "an answer in the middle": [
        {"role": "user", "content": "What is a river?"},
        {"role": "assistant", "content": "  a large stream \n"},
        {"role": "user", "content": "The  sea?\n\n\nOr: 日本"},
    ],
    "the role of Gemma": [
        {"role": "user", "content": "What is a river?"},
        {"role": "model", "content": "a large stream"},
        {"role": "user", "content": ""},
    ],
    "an answer at the end": [
        {"role": "user", "content": "What is a river?"},
        {"role": "model", "content": "a large stream"},
    ],
    "a system message": [
        {"role": "system", "content": "\nSpeak of the sea. "},
        {"role": "user", "content": "  What is a river?"},
    ],
    "a system message alone in front": [
        {"role": "system", "content": "Speak."},
        {"role": "user", "content": " "},
    ],
    "an empty system message": [
        {"role": "system", "content": " "},
        {"role": "user", "content": "A river?"},
    ],
    "parts": [
        {"role": "system", "content": [{"type": "text", "text": "Speak "}]},
        {
            "role": "user",
            "content": [{"type": "text", "text": "What "}, {"type": "text", "text": " is it?"}],
        },
    ],
}


@pytest.fixture(scope="module")
def lm():
    """A model whose window is longer than the texts here: transformers' begins to differ there."""
    keras.utils.set_random_seed(0)
    return tiny.wordy(tiny.causal_lm(sequence_length=128, sliding_window_size=512))


@pytest.fixture(scope="module")
def exported(lm, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported") / "model"
    lm.export_to_transformers(folder)
    return folder


def turns_of(messages):
    """The messages as turns of user and model, as this package's own chats have them."""
    turns, system = [], ""
    for message in messages:
        content = message["content"]
        if not isinstance(content, str):
            content = "".join(part["text"] for part in content)
        role = {"assistant": "model"}.get(message["role"], message["role"])
        if role == "system":
            system = content.strip()
        else:
            content = f"{system}\n\n{content.strip()}" if system else content
            turns.append({"role": role, "content": content})
            system = ""
    return turns


def chat_ids(tokenizer, turns, asks):
    """The ids that a chat has consumed after these turns, and before an answer."""
    ids = [tokenizer.start_token_id]
    for place, turn in enumerate(turns):
        ids += tokenizer.turn_token_ids(turn["role"], turn["content"], is_first=place == 0)
        ids += [tokenizer.end_token2_id]
    return ids + (tokenizer.turn_token_ids("model", "") if asks else [])


@pytest.mark.parametrize("name", MESSAGES)
def test_the_template_gives_the_ids_of_a_chat(lm, exported, name):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    messages = MESSAGES[name]
    asks = messages[-1]["role"] == "user"
    ids = theirs.apply_chat_template(messages, add_generation_prompt=asks)["input_ids"]
    assert ids == chat_ids(lm.preprocessor.tokenizer, turns_of(messages), asks)


def test_the_ids_of_a_chat_are_those_that_it_consumes(lm, exported):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    *history, last = turns_of(MESSAGES["an answer in the middle"])
    chat = lm.chat(history, max_new_tokens=1)
    ids = theirs.apply_chat_template(history)["input_ids"]
    assert chat.state.num_tokens == len(ids)
    answer = lm.generate(
        theirs.apply_chat_template(
            [*history, last], add_generation_prompt=True, tokenize=False
        ).removeprefix("<bos>"),
        max_new_tokens=NEW,
        strip_prompt=True,
    )
    assert lm.chat(history, max_new_tokens=NEW).send(last["content"]) == answer


@pytest.mark.parametrize(
    "messages, message",
    [
        ([{"role": "model", "content": "Hi"}], "in turn"),
        ([{"role": "user", "content": "Hi"}] * 2, "in turn"),
        ([{"role": "user", "content": "Hi"}, {"role": "system", "content": "Hi"}], "in turn"),
        ([{"role": "tool", "content": "Hi"}], "in turn"),
        ([{"role": "user", "content": [{"type": "image", "url": "x"}]}], "text alone.*image"),
        ([{"role": "user", "content": 3}], "string or a list"),
    ],
)
def test_messages_that_the_template_refuses(exported, messages, message):
    theirs = transformers.AutoTokenizer.from_pretrained(exported)
    with pytest.raises(Exception, match=message):
        theirs.apply_chat_template(messages)


def test_a_pipeline_takes_messages_and_stops(lm, exported):
    pipeline = transformers.pipeline("text-generation", model=str(exported))
    assert pipeline.model.generation_config.eos_token_id == [1, 5]
    messages = MESSAGES["an answer in the middle"]
    (answer,) = pipeline(messages, max_new_tokens=NEW, do_sample=False)
    *history, last = turns_of(messages)
    assert answer["generated_text"][-1]["role"] == "assistant"
    expected = lm.chat(history, max_new_tokens=NEW).send(last["content"])
    assert answer["generated_text"][-1]["content"] == expected


@pytest.mark.parametrize("end", ["<eos>", "<end_of_turn>"])
def test_a_pipeline_ends_at_both_tokens(tmp_path, end):
    """A model that writes nothing but this token."""
    ending = tiny.causal_lm(sequence_length=128, sliding_window_size=512)
    id = ending.preprocessor.tokenizer.token_to_id(end)
    ending.set_weights([weight * 0 for weight in ending.get_weights()])
    norm = ending.backbone.final_norm.scale
    norm.assign(norm * 0 + 1)
    embeddings = ending.backbone.token_embedding.embeddings
    table = tiny.numpy(embeddings) + 0.1
    table[id] = 1
    embeddings.assign(table)
    ending.export_to_transformers(tmp_path / "model")
    pipeline = transformers.pipeline("text-generation", model=str(tmp_path / "model"))
    (answer,) = pipeline(MESSAGES["one message"], max_new_tokens=NEW, do_sample=False)
    assert answer["generated_text"][-1]["content"] == ""  # both are special, and not shown
    prompt = pipeline.tokenizer("The quick", return_tensors="pt")
    ids = pipeline.model.generate(**prompt, max_new_tokens=NEW, do_sample=False)[0].tolist()
    assert ids == [*prompt["input_ids"][0].tolist(), id]


def fine_tune(folder, to):
    """Trains the model in a folder with transformers' Trainer; returns their model and tokenizer.

    Args:
        folder: path of the model.
        to: path; the Trainer saves the model there, and two checkpoints below it.
    """
    transformers.set_seed(0)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModelForCausalLM.from_pretrained(folder)
    rows = tokenizer([x for x in tiny.SENTENCES if len(x) > 60])["input_ids"]
    length = min(map(len, rows))
    trainer = transformers.Trainer(
        model=model,
        args=transformers.TrainingArguments(
            output_dir=str(to),
            max_steps=2,
            save_steps=1,
            learning_rate=1e-2,
            per_device_train_batch_size=2,
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
        ),
        train_dataset=[{"input_ids": row[:length], "labels": row[:length]} for row in rows],
        processing_class=tokenizer,
    )
    trainer.train()
    trainer.save_model()
    return model.eval(), tokenizer


def their_text(model, tokenizer, prompt):
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)[0]
    new = ids[inputs["input_ids"].shape[1] :]
    return tokenizer.decode(new, skip_special_tokens=True)


@pytest.fixture(scope="module")
def trained(exported, tmp_path_factory):
    folder = tmp_path_factory.mktemp("trained")
    return folder, *fine_tune(exported, folder)


def check_text(lm, theirs, tokenizer):
    expected = [their_text(theirs, tokenizer, prompt) for prompt in PROMPTS]
    assert len(set(expected)) == len(PROMPTS)
    ours = lm.generate(list(PROMPTS), max_new_tokens=NEW, strip_prompt=True)
    assert ours == expected


def test_a_fine_tune_of_their_trainer_writes_what_it_writes_there(trained, lm):
    folder, theirs, tokenizer = trained
    # What the Trainer writes today.
    assert not (folder / "tokenizer.model").exists()
    assert json.loads((folder / "tokenizer.json").read_text())["model"]["type"] == "BPE"
    loaded = RGemmaCausalLM.from_preset(str(folder))
    check_text(loaded, theirs, tokenizer)
    before = lm.generate(list(PROMPTS), max_new_tokens=NEW, strip_prompt=True)
    assert before != loaded.generate(list(PROMPTS), max_new_tokens=NEW, strip_prompt=True)
    assert isinstance(loaded.chat(max_new_tokens=2).send("Hi"), str)


def test_a_checkpoint_of_their_trainer_loads(trained):
    folder, theirs, tokenizer = trained
    check_text(RGemmaCausalLM.from_preset(str(folder / "checkpoint-2")), theirs, tokenizer)
    first = transformers.AutoModelForCausalLM.from_pretrained(folder / "checkpoint-1")
    check_text(RGemmaCausalLM.from_preset(str(folder / "checkpoint-1")), first, tokenizer)


def test_a_fine_tune_of_their_trainer_loads_from_a_hub(trained, empty_hub):
    folder, theirs, tokenizer = trained
    files = {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}
    empty_hub.files["main"] = files
    check_text(RGemmaCausalLM.from_preset("hf://someone/model"), theirs, tokenizer)
    assert "tokenizer.json" in empty_hub.sent
    assert "training_args.bin" not in empty_hub.sent
