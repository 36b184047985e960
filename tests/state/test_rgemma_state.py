"""States: any split of a text is the same, nothing changes one, files give it back or say why."""

import hashlib
import json
import os
import pathlib
import pickle
import subprocess
import sys

import keras
import keras_hub
import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keras import ops

import keras_rgemma
import tiny
from generation import plain
from keras_rgemma import RGemmaState
from keras_rgemma.state import continuing
from keras_rgemma.state import file as state_file
from keras_rgemma.state.fingerprint import Fingerprint

W = plain.WINDOW
TEXT = np.random.RandomState(5).randint(1, 61, 41)
# Float32 sums of other sizes in another order, of a model that does not multiply their errors.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def lm():
    return plain.lively_model()


@pytest.fixture(scope="module")
def calm():
    """One that does not multiply errors of rounding."""
    return plain.lively_model(gain=1)


@pytest.fixture(scope="module")
def answer(lm):
    """The greedy tokens after the whole text."""
    return continued(lm, TEXT)


def continued(lm, ids, state=None, count=9):
    """Greedy tokens, and the state after them if one was given."""
    inputs = {"token_ids": np.array(ids, "int32")[None]}
    out = lm.generate(
        inputs, max_new_tokens=count, stop_token_ids=None, strip_prompt=True, state=state
    )
    return out["token_ids"][0, :count].tolist()


def assert_same_state(state, other, tolerance=0.0):
    assert state.fingerprint == other.fingerprint
    pairs = zip(keras.tree.flatten(state), keras.tree.flatten(other), strict=True)
    for found, expected in pairs:
        np.testing.assert_allclose(tiny.numpy(found), tiny.numpy(expected), tolerance, tolerance)


def copied(state):
    return [np.array(tiny.numpy(array)) for array in keras.tree.flatten(state)]


# === Pieces ===


SIZES = [1, 2, 3, W - 1, W, W + 1, 17]
SPLITS = {
    "sizes": st.lists(st.sampled_from(SIZES), min_size=41),
    "chunk_size": st.sampled_from([1, 3, W, 2048]),
}


def pieces_of(sizes):
    """Pairs of a start and an end of pieces of the text."""
    ends = [end for end in np.cumsum(sizes).tolist() if end < len(TEXT)] + [len(TEXT)]
    return zip([0, *ends[:-1]], ends, strict=True)


@settings(max_examples=4)
@given(**SPLITS)
@example(sizes=[1] * 41, chunk_size=2048)
@example(sizes=[41], chunk_size=2)
@example(sizes=[41], chunk_size=W - 1)
@example(sizes=[40, 1], chunk_size=W + 1)
def test_the_answer_to_a_text_in_pieces_is_that_to_the_whole(lm, answer, sizes, chunk_size):
    state = None
    for start, end in pieces_of(sizes):
        state = lm.prefill(TEXT[start:end], state=state, chunk_size=chunk_size)
        assert state.num_tokens.tolist() == [end]
    assert continued(lm, [], state) == answer


@settings(max_examples=4)
@given(**SPLITS)
@example(sizes=[1] * 41, chunk_size=2048)
@example(sizes=[W, 17, 17, 1, 1], chunk_size=1)
def test_the_logits_of_a_text_in_pieces_are_those_of_the_whole(calm, sizes, chunk_size):
    whole, state = tiny.numpy(calm.score(TEXT[None]))[0], None
    for start, end in pieces_of(sizes):
        if state is not None and end - start in (1, W, 17):  # compiled for few lengths
            found = tiny.numpy(calm.score(TEXT[None, start:end], state=state))[0]
            np.testing.assert_allclose(found, whole[start:end], 0, TOLERANCE)
        state = calm.prefill(TEXT[start:end], state=state, chunk_size=chunk_size)


def test_a_text_may_end_between_a_state_and_a_prompt(lm, answer):
    for place in (1, W, 40):
        assert continued(lm, TEXT[place:], lm.prefill(TEXT[:place])) == answer


def test_an_iterator_of_pieces_is_one_text(lm, answer):
    pieces = iter([[], TEXT[:7].tolist(), [], TEXT[7:8], TEXT[8:]])
    state = lm.prefill(pieces, chunk_size=4)
    assert state.num_tokens.tolist() == [41]
    assert continued(lm, [], state) == answer


def test_text_that_comes_as_lines_of_a_file(tmp_path):
    lm = tiny.causal_lm()
    lines = ["What is a river?\n", "A river is water.\n"]
    (tmp_path / "text").write_text("".join(lines))
    with open(tmp_path / "text") as file:
        state = lm.prefill(file)
    # The start token once, and the ids of each line.
    assert state.num_tokens.tolist() == [1 + sum(len(tiny.tokenizer()(line)) for line in lines)]
    assert_same_state(state, lm.prefill("".join(lines)), TOLERANCE)
    assert_same_state(lm.prefill(lines[1], state=lm.prefill(lines[0])), state, TOLERANCE)


def test_rows_of_several_lengths_have_the_states_that_each_has_alone(calm):
    rows = [TEXT[:1], TEXT[:W], TEXT[3:30]]
    ids, mask = np.zeros((2, 3, 27), "int32")
    for i, row in enumerate(rows):
        ids[i, -len(row) :], mask[i, -len(row) :] = row, 1
    together = calm.prefill({"token_ids": ids, "padding_mask": mask})
    alone = RGemmaState.concatenate([calm.prefill(row) for row in rows])
    assert together.num_tokens.tolist() == [1, W, 27]
    assert_same_state(together, alone, TOLERANCE)


def test_limits_count_the_tokens_of_this_call(lm):
    state = lm.prefill(TEXT)
    inputs = {"token_ids": TEXT[None, :3]}
    out = lm.generate(inputs, max_length=8, stop_token_ids=None, state=state)
    assert out["token_ids"].shape == (1, 8)
    assert out["token_ids"][0, :3].tolist() == TEXT[:3].tolist()


# === States that generation returns ===

SAMPLERS = {
    "greedy": keras_hub.samplers.GreedySampler,
    "beam": lambda: keras_hub.samplers.BeamSampler(num_beams=3),
    "contrastive": lambda: keras_hub.samplers.ContrastiveSampler(k=3),
}


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_state_after_an_answer_is_that_of_its_text(lm, name):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(sampler=SAMPLERS[name]())
    ids, mask = np.zeros((2, 3, 9), "int32")
    for i, row in enumerate([TEXT[:2], TEXT[:9], TEXT[20:26]]):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    inputs = {"token_ids": ids, "padding_mask": mask}
    kept = other.generate(inputs, max_new_tokens=7, stop_token_ids=None, strip_prompt=True)
    # Each row ends at another place, one of them nowhere.
    stops = (int(kept["token_ids"][0, 1]), int(kept["token_ids"][1, 3]))
    other.compile(sampler=SAMPLERS[name]())
    out, state = other.generate(inputs, max_new_tokens=7, stop_token_ids=stops, return_state=True)
    lengths = out["padding_mask"].sum(axis=1)
    assert len(set(lengths - mask.sum(axis=1))) > 1
    assert state.num_tokens.tolist() == lengths.tolist()
    # Beams are gathered, and contrastive search is read again: other sums, many layers.
    assert_same_state(state, lm.prefill(out), 1e-4)


def test_answers_piece_by_piece_are_the_whole_answer(lm):
    inputs, state, pieces = {"token_ids": TEXT[None]}, None, []
    for count in (1, 2, 6):
        out, state = lm.generate(
            inputs,
            max_new_tokens=count,
            stop_token_ids=None,
            strip_prompt=True,
            state=state,
            return_state=True,
        )
        pieces += out["token_ids"][0, :count].tolist()
        inputs = {"token_ids": np.zeros((1, 0), "int32")}
    assert pieces == continued(lm, TEXT)


def test_several_answers_to_a_prompt_are_those_of_a_repeated_state():
    lm = tiny.causal_lm()
    lm.compile(sampler=keras_hub.samplers.TopKSampler(k=9, seed=1))
    (seed,), value = lm.sampler.variables, tiny.numpy(lm.sampler.variables[0])
    texts = lm.generate(["The", "A"], max_new_tokens=5, num_return_sequences=2)
    seed.assign(value)
    state = lm.prefill(["The", "A"]).repeat(2)
    news = lm.generate([""] * 4, max_new_tokens=5, state=state)
    prompts = ["The", "The", "A", "A"]
    assert texts == [prompt + new for prompt, new in zip(prompts, news, strict=True)]
    assert len(set(texts)) > 2


# === States are values ===


def test_requests_that_share_a_state_do_not_touch_each_other(lm, answer):
    state = lm.prefill(TEXT[:30])
    before = copied(state)
    inputs = {"token_ids": TEXT[None, 30:]}
    limits = {"max_new_tokens": 9, "stop_token_ids": None, "state": state}
    streams = [lm.stream(inputs, **limits), lm.stream({"token_ids": TEXT[None, 5:9]}, **limits)]
    expected = [answer, continued(lm, TEXT[5:9], state)]
    found = [[], []]
    for _ in range(9):
        for row, stream in zip(found, streams, strict=True):
            row.append(int(next(stream)["token_ids"][0, 0]))
    assert found == expected
    for array, old in zip(keras.tree.flatten(state), before, strict=True):
        np.testing.assert_array_equal(tiny.numpy(array), old)
    with pytest.raises(AttributeError):
        state.last_token_ids = None


def test_slices_repeats_and_concatenations_are_rows(calm):
    state = calm.prefill({"token_ids": TEXT[:18].reshape(3, 6)})
    alone = [calm.prefill(TEXT[i : i + 6]) for i in (0, 6, 12)]
    assert (state.batch_size, len(state)) == (3, 3)
    for i in range(3):
        assert_same_state(state[i], alone[i], TOLERANCE)
    assert_same_state(state[-1], state[2:])
    assert_same_state(state[[0, 2]], RGemmaState.concatenate([state[0], state[2]]))
    assert_same_state(state[np.array([False, True, True])], state[1:3])
    assert_same_state(state[1:].repeat(2), state[[1, 1, 2, 2]])
    assert [row.batch_size for row in state] == [1, 1, 1]
    assert state.nbytes == 3 * state[0].nbytes
    for wrong in (3, -4, [7], None, True, [[0, 1]]):
        with pytest.raises(IndexError):
            state[wrong]
    for wrong in (0, -1, 1.5, True, None):
        with pytest.raises(ValueError, match="repeats"):
            state.repeat(wrong)
    with pytest.raises(ValueError, match="at least one"):
        RGemmaState.concatenate([])
    with pytest.raises(TypeError, match="must be an RGemmaState"):
        RGemmaState.concatenate([state, "another"])


def test_its_size_does_not_grow_with_the_text(lm):
    sizes = {lm.prefill(TEXT[:length]).nbytes for length in (1, W, 41)}
    state = lm.prefill(TEXT)
    arrays = [tiny.numpy(array) for array in keras.tree.flatten(state)]
    assert sizes == {sum(array.size * 4 for array in arrays)}
    assert repr(state) == f"RGemmaState(batch_size=1, num_tokens=[41], nbytes={state.nbytes})"


def test_it_is_a_tree_of_arrays(lm):
    state = lm.prefill(TEXT)
    trees = [keras.tree]
    if keras.config.backend() == "jax":
        import jax

        trees.append(jax.tree)
    for tree in trees:
        mapped = (tree.map_structure if tree is keras.tree else tree.map)(lambda x: x + 0, state)
        assert isinstance(mapped, RGemmaState)
        assert_same_state(mapped, state)
    assert_same_state(pickle.loads(pickle.dumps(state)), state)


# === Another model ===


def test_a_state_of_another_model_is_refused_with_the_reason(lm):
    others = {
        "`sliding_window_size` 7 and 5": plain.lively_model(sliding_window_size=7),
        "`lru_dim` 16 and 24": plain.lively_model(lru_dim=16),
        "same sizes, but other weights": plain.lively_model(seed=2),
    }
    inputs = {"token_ids": TEXT[None, :3]}
    for reason, other in others.items():
        state = other.prefill(TEXT[:3])
        for call in (lm.generate, lm.stream):
            with pytest.raises(ValueError, match=f"belongs to another model.*{reason}"):
                call(inputs, max_new_tokens=1, stop_token_ids=None, state=state)
        with pytest.raises(ValueError, match=reason):
            lm.prefill(TEXT[:3], state=state)
        with pytest.raises(ValueError, match=reason):
            lm.score(TEXT[None, :3], state=state)
        with pytest.raises(ValueError, match="different models"):
            RGemmaState.concatenate([state, lm.prefill(TEXT[:3])])


def test_the_same_weights_in_another_dtype_go_on(lm):
    half = plain.lively_model(dtype="bfloat16")
    half.set_weights([tiny.numpy(weight) for weight in lm.weights])
    state = lm.prefill(TEXT)
    assert half.fingerprint() == lm.fingerprint()
    after = half.prefill(TEXT[:3], state=state)
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(after)}
    assert dtypes == {"int32", "float32", "bfloat16"}
    again = lm.prefill(TEXT[:3], state=after)
    dtypes = {keras.backend.standardize_dtype(x.dtype) for x in keras.tree.flatten(again)}
    assert dtypes == {"int32", "float32"}


def test_what_does_not_fit_is_refused(lm, monkeypatch):
    state = lm.prefill({"token_ids": TEXT[:6].reshape(2, 3)})
    inputs = {"token_ids": TEXT[None, :3]}
    limits = {"max_new_tokens": 1, "stop_token_ids": None}
    with pytest.raises(ValueError, match=r"holds 2 rows, but 1 .*`state\.repeat"):
        lm.generate(inputs, state=state, **limits)
    with pytest.raises(ValueError, match="holds 2 rows, but 1"):
        lm.prefill(TEXT, state=state)
    with pytest.raises(ValueError, match="holds 2 rows, but 1"):
        lm.score(TEXT[None], state=state)
    for wrong in ((state,), "document.rgstate"):
        for call in (
            lambda state: lm.generate(inputs, state=state, **limits),
            lambda state: lm.prefill(TEXT, state=state),
            lambda state: lm.score(TEXT[None], state=state),
        ):
            with pytest.raises(TypeError, match=r"must be an RGemmaState\. Received: "):
                call(wrong)
    with pytest.raises(ValueError, match="then its pads"):
        lm.score(TEXT[None, :3], padding_mask=[[0, 1, 1]], state=state[0])
    with pytest.raises(ValueError, match="chunk_size"):
        lm.prefill(TEXT, chunk_size=0)
    with pytest.raises(ValueError, match=r"vocabulary.*61"):
        lm.prefill([3, 61])
    with pytest.raises(ValueError, match="iterator without a piece"):
        lm.prefill(iter([]))
    with pytest.raises(ValueError, match="holds no token"):
        lm.prefill([])
    with pytest.raises(ValueError, match=r"must hold `token_ids`.*\['ids'\]"):
        lm.prefill({"ids": [[3]]})
    contrastive = keras_rgemma.RGemmaCausalLM(lm.backbone)
    contrastive.compile(sampler="contrastive")
    with pytest.raises(ValueError, match=r"Contrastive search.*state"):
        contrastive.generate(inputs, state=state[0], **limits)
    monkeypatch.setattr(continuing, "MOST_TOKENS", 50)
    with pytest.raises(ValueError, match=r"at most 50 tokens\. This has 53"):
        lm.prefill(np.repeat(TEXT[:10], 5), state=state[0])
    with pytest.raises(ValueError, match="at most 50 tokens"):
        lm.prefill(iter([TEXT, TEXT]), chunk_size=10)


# === Files ===


@pytest.fixture(scope="module")
def file(lm, tmp_path_factory):
    path = tmp_path_factory.mktemp("states") / "document.rgstate"
    lm.prefill({"token_ids": TEXT[:40].reshape(2, 20)}).save(path)
    return path


def test_a_file_gives_the_state_back_to_the_bit(lm, file, tmp_path):
    state = lm.prefill({"token_ids": TEXT[:40].reshape(2, 20)})
    assert_same_state(RGemmaState.load(file), state)
    half = keras.tree.map_structure(
        lambda x: ops.cast(x, "bfloat16") if "float" in str(x.dtype) else x, state
    )
    half.save(tmp_path / "half.rgstate")
    found = RGemmaState.load(tmp_path / "half.rgstate")
    assert_same_state(found, half)
    assert [str(x.dtype) for x in keras.tree.flatten(found)] == [
        str(x.dtype) for x in keras.tree.flatten(half)
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["half.rgstate"]


WRITER = """
import sys, numpy as np, keras_rgemma
lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
lm.prefill("In the beginning God created the").save(sys.argv[1])
"""


@pytest.mark.slow
def test_a_state_of_another_backend_goes_on_with_the_same_tokens(tmp_path):
    other = {"jax": "torch", "tensorflow": "jax", "torch": "jax"}[keras.config.backend()]
    environment = {**os.environ, "KERAS_BACKEND": other}
    package = pathlib.Path(keras_rgemma.__file__).parent.parent
    environment["PYTHONPATH"] = str(package)
    command = [sys.executable, "-c", WRITER, tmp_path / "other.rgstate"]
    subprocess.run(command, env=environment, check=True)
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    state = RGemmaState.load(tmp_path / "other.rgstate")
    assert state.num_tokens.tolist() == lm.prefill("In the beginning God created the").num_tokens
    texts = [
        lm.generate("", state=state, max_new_tokens=24),
        lm.generate("In the beginning God created the", max_new_tokens=24, strip_prompt=True),
    ]
    assert texts[0] == texts[1] and len(texts[0]) > 24


def test_architectures_are_compared_field_by_field():
    one = Fingerprint('{"a": 1}', "x")
    assert one.difference(one) == ""
    assert one.difference(Fingerprint('{"a": 1}', "y")) == "the same sizes, but other weights"
    assert one.difference(Fingerprint('{"a": 2}', "x")) == "`a` 1 and 2"
    for pair in ((one, Fingerprint('{"a": 1, "b": 3}', "x")), (Fingerprint("{}", "x"), one)):
        assert pair[0].difference(pair[1]) and pair[1].difference(pair[0])


@settings(max_examples=60)
@given(st.data())
def test_a_file_that_was_cut_or_changed_is_refused(file, tmp_path_factory, data):
    content = file.read_bytes()
    broken = tmp_path_factory.getbasetemp() / "broken.rgstate"
    place = data.draw(st.integers(0, len(content) - 1))
    if data.draw(st.booleans()):
        broken.write_bytes(content[:place])
    else:
        changed = bytearray(content)
        changed[place] ^= 1 << data.draw(st.integers(0, 7))
        broken.write_bytes(changed)
    with pytest.raises(ValueError, match=r"broken\.rgstate' is not a state that can be used: "):
        RGemmaState.load(broken)


def rewritten(file, path, change):
    """A file with a right checksum over contents that were changed."""
    import safetensors.numpy

    start = len(state_file.MAGIC) + 32
    metadata, tensors = state_file.parsed(file.read_bytes()[start:])
    change(metadata, tensors)
    payload = safetensors.numpy.save(tensors, metadata=metadata)
    path.write_bytes(state_file.MAGIC + hashlib.sha256(payload).digest() + payload)
    return path


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda m, t: m.update(version="2"), "version '2', and this is version 1"),
        (lambda m, t: m.pop("version"), "version None"),
        (lambda m, t: m.pop("weights"), "do not make a state.*weights"),
        (lambda m, t: m.update(extra="{"), "do not make a state"),
        (lambda m, t: t.pop("num_consumed"), "do not make a state.*num_consumed"),
        (lambda m, t: t.pop("layers.0.conv"), "do not make a state"),
        (lambda m, t: t.update(more=t["layers.0.conv"]), "do not make a state.*more"),
        (lambda m, t: t.update({"layers.7.conv": t["layers.0.conv"]}), "do not make a state"),
        (
            lambda m, t: t.update(last_token_ids=t["last_token_ids"][:1]),
            "numbers of rows differ",
        ),
    ],
)
def test_contents_that_make_no_state_are_refused(file, tmp_path, change, reason):
    with pytest.raises(ValueError, match=rf"x\.rgstate.*{reason}"):
        RGemmaState.load(rewritten(file, tmp_path / "x.rgstate", change))


def test_a_file_with_other_arrays_than_its_model_has_is_refused(lm, file, tmp_path):
    def change(metadata, tensors):
        tensors["layers.0.conv"] = tensors["layers.0.conv"][:, :2]

    state = RGemmaState.load(rewritten(file, tmp_path / "x.rgstate", change))
    with pytest.raises(ValueError, match="other shapes"):
        lm.prefill(np.zeros((2, 1), "int32"), state=state)


def test_other_files_are_refused(tmp_path):
    for name, content in {"empty": b"", "text": b"hello", "json": b"{}" * 100}.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(ValueError, match=f"{name}.*another kind of file"):
            RGemmaState.load(tmp_path / name)
    with pytest.raises(FileNotFoundError, match="missing"):
        RGemmaState.load(tmp_path / "missing")
    with pytest.raises(OSError):
        RGemmaState.load(tmp_path)


def test_a_file_says_what_it_is(file):
    content = file.read_bytes()
    metadata, tensors = state_file.parsed(content[len(state_file.MAGIC) + 32 :])
    assert metadata["version"] == "1"
    assert json.loads(metadata["architecture"])["sliding_window_size"] == W
    assert tensors["last_token_ids"].tolist() == [TEXT[19], TEXT[39]]


def test_a_state_can_be_shown_while_a_program_is_traced():
    state = tiny.causal_lm().prefill("A river is")
    shown = []

    def program(state):
        shown.append(repr(state))
        return state

    if keras.config.backend() == "jax":
        import jax

        jax.jit(program)(state)
        jax.vmap(program)(state)
    elif keras.config.backend() == "tensorflow":
        import tensorflow as tf

        tf.function(lambda *arrays: program(keras.tree.pack_sequence_as(state, arrays)).consumed)(
            *keras.tree.flatten(state)
        )
    else:
        program(state)
    program(keras.tree.map_structure(lambda array: None, state))
    assert all(x.startswith("RGemmaState(batch_size=") for x in shown)
    assert shown[-1] == "RGemmaState(batch_size=?, num_tokens=?, nbytes=?)"
    assert ("num_tokens=?" in shown[0]) == (keras.config.backend() != "torch")
    assert repr(state).startswith(
        f"RGemmaState(batch_size=1, num_tokens={[int(state.num_tokens[0])]}"
    )
