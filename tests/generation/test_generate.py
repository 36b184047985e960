"""What `generate` returns is what its definition says, for each row alone."""

import keras
import keras_hub
import numpy as np
import pytest

import keras_rgemma
from generation import plain

LENGTHS = (1, 2, plain.WINDOW - 1, plain.WINDOW + 1, 3 * plain.WINDOW)
NEW = 12


@pytest.fixture(scope="module")
def prompts():
    random = np.random.RandomState(3)
    return [random.randint(1, 61, length).tolist() for length in LENGTHS]


@pytest.fixture(scope="module")
def lm():
    """Compiled with the greedy sampler once: each compile() throws the programs away."""
    return plain.lively_model()


@pytest.fixture(scope="module")
def beam_lm(lm):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(sampler=keras_hub.samplers.BeamSampler(num_beams=3))
    return other


@pytest.fixture(scope="module")
def greedy_texts(lm, prompts):
    return [plain.greedy(lm, row, NEW) for row in prompts]


@pytest.fixture(scope="module")
def beam_texts(lm, prompts):
    return [plain.beam(lm, row, NEW, 3) for row in prompts]


def padded(rows, side="right"):
    width = max(len(row) for row in rows)
    token_ids, mask = np.zeros((2, len(rows), width), "int32")
    for i, row in enumerate(rows):
        at = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        token_ids[i, at], mask[i, at] = row, 1
    return {"token_ids": token_ids, "padding_mask": mask}


def new_tokens(lm, rows, count=NEW, stops=None, side="right", **limits):
    """The new tokens of each row, as lists, from one call for all rows."""
    limits = limits or {"max_new_tokens": count}
    out = lm.generate(padded(rows, side), stop_token_ids=stops, strip_prompt=True, **limits)
    pairs = zip(out["token_ids"], out["padding_mask"], strict=True)
    return [ids[mask].tolist() for ids, mask in pairs]


def a_stop_token(texts):
    """A token that ends some of these texts early and at different places."""
    counts = {t: [row.index(t) for row in texts if t in row] for row in texts for t in row}
    places = {t: set(found) for t, found in counts.items() if max(found) < NEW - 1}
    return max(places, key=lambda t: (len(places[t]), len(counts[t]), -t))


def cut(texts, stops):
    """What greedy search leaves of its texts when these tokens stop it."""
    ends = [min((row.index(t) for t in stops if t in row), default=NEW) for row in texts]
    return [row[: end + 1] for row, end in zip(texts, ends, strict=True)]


def test_greedy_equals_recomputing_everything_at_each_step(lm, prompts, greedy_texts):
    assert len({token for row in greedy_texts for token in row}) > 10, "it only repeats itself"
    assert new_tokens(lm, prompts) == greedy_texts


def test_greedy_rows_stop_at_different_times(lm, prompts, greedy_texts):
    stop = a_stop_token(greedy_texts)
    texts = cut(greedy_texts, (stop,))
    assert len({len(row) for row in texts}) > 1
    assert new_tokens(lm, prompts, stops=(stop,)) == texts
    # 0 is what buffers are usually padded with.
    assert new_tokens(lm, prompts, stops=(0, stop)) == cut(greedy_texts, (0, stop))


def test_a_row_does_not_depend_on_padding_or_its_neighbours(lm, prompts, greedy_texts):
    assert [new_tokens(lm, [row])[0] for row in prompts] == greedy_texts
    assert new_tokens(lm, prompts[::-1], side="left") == greedy_texts[::-1]


@pytest.mark.parametrize("with_stops", [False, True])
def test_beam_search_of_ragged_rows_equals_each_row_alone(beam_lm, prompts, beam_texts, with_stops):
    stops = (a_stop_token(beam_texts),) if with_stops else None
    if with_stops:
        beam_texts = [plain.beam(beam_lm, row, NEW, 3, stops) for row in prompts]
        assert len({len(row) for row in beam_texts}) > 1
    assert new_tokens(beam_lm, prompts, stops=stops) == beam_texts
    assert [new_tokens(beam_lm, [row], stops=stops)[0] for row in prompts] == beam_texts


def test_beam_search_differs_from_greedy(beam_texts, greedy_texts):
    """Else the test above would hold for a beam search that looks at one beam."""
    assert beam_texts != greedy_texts


def test_contrastive_search_of_ragged_rows_equals_its_definition(lm, prompts, greedy_texts):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(sampler=keras_hub.samplers.ContrastiveSampler(k=4, alpha=0.5))
    texts = [plain.contrastive(lm, row, NEW // 2, 4, 0.5) for row in prompts]
    assert texts != [row[: NEW // 2] for row in greedy_texts]
    assert new_tokens(other, prompts, NEW // 2) == texts


def test_contrastive_search_stops_rows_at_different_times(lm, prompts):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(sampler=keras_hub.samplers.ContrastiveSampler(k=4, alpha=0.5))
    rows = prompts[1:4]
    first = plain.contrastive(lm, rows[0], NEW // 2, 4, 0.5)
    stop = next(t for t in first[1:3] if t not in first[:1])
    texts = [plain.contrastive(lm, row, NEW // 2, 4, 0.5, (stop,)) for row in rows]
    assert len({len(row) for row in texts}) > 1
    assert new_tokens(other, rows, NEW // 2, stops=(stop,)) == texts  # of each row alone


def test_a_limit_cuts_the_text_and_changes_nothing_before(lm, prompts, greedy_texts):
    for count in (0, 1, 5):
        assert new_tokens(lm, prompts, count) == [row[:count] for row in greedy_texts]
    total = max(LENGTHS) + 2
    budgets = [total - length for length in LENGTHS]
    longer = new_tokens(lm, prompts, max(budgets))
    expected = [row[:budget] for row, budget in zip(longer, budgets, strict=True)]
    assert new_tokens(lm, prompts, max_length=total) == expected


def test_a_stop_token_in_the_prompt_does_not_stop(lm, prompts, greedy_texts):
    stops = tuple(set(prompts[3]) - set(greedy_texts[3]))[:1]
    assert stops, "every token of the prompt is in the answer"
    assert new_tokens(lm, [prompts[3]], stops=stops)[0] == greedy_texts[3]


@pytest.mark.parametrize("name", ["top_k", "top_p", "random"])
def test_random_samplers_repeat_with_their_seed(lm, prompts, name):
    sampler_class = {
        "top_k": keras_hub.samplers.TopKSampler,
        "top_p": keras_hub.samplers.TopPSampler,
        "random": keras_hub.samplers.RandomSampler,
    }[name]
    texts = []
    for seed in (7, 7):
        other = keras_rgemma.RGemmaCausalLM(lm.backbone)
        other.compile(sampler=sampler_class(seed=seed, temperature=3.0))
        texts.append((new_tokens(other, prompts), new_tokens(other, prompts)))
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1], "the seed does not move on between calls"
    assert {len(row) for row in texts[0][0]} == {NEW}


def test_prompts_longer_than_a_prefill_chunk(lm, prompts, greedy_texts, monkeypatch):
    from keras_rgemma.generation import programs

    sizes = programs.chunk_sizes
    monkeypatch.setattr(programs, "SMALLEST_CHUNK", 2)
    monkeypatch.setattr(programs, "chunk_sizes", lambda length, *_: sizes(length, chunk_size=6))
    assert list(programs.chunk_sizes(13)) == [6, 6, 2]
    assert new_tokens(lm, prompts) == greedy_texts


@pytest.mark.parametrize(
    "length, sizes, one_size",
    [
        (1, [32], [32]),
        (32, [32], [32]),
        (140, [128, 32], [512]),
        (700, [512, 128, 32, 32], [2048]),
        (2048, [2048], [2048]),
        (2300, [2048, 128, 128], [2048, 2048]),
    ],
)
def test_sizes_of_chunks(length, sizes, one_size):
    from keras_rgemma.generation.programs import chunk_sizes

    assert list(chunk_sizes(length)) == sizes
    assert list(chunk_sizes(length, is_one_size=True)) == one_size


def test_a_first_call_compiles_two_programs_where_that_takes_long(lm, prompts, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("nothing is compiled on PyTorch")
    from keras_rgemma.backend import backend_module
    from keras_rgemma.generation import programs

    monkeypatch.setattr(programs, "SMALLEST_CHUNK", 2)
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    rows = [(prompts[4] * 2)[:11]]  # read as 8 and 2 tokens, or at once
    counts, texts = [], []
    for is_slow in (False, True):
        monkeypatch.setattr(
            backend_module("keras_rgemma.generation"), "compiles_slowly", lambda x=is_slow: x
        )
        other.compile(sampler="greedy")
        texts.append(new_tokens(other, rows))
        counts.append(other.make_generate_function().num_compiled)
    assert counts == [3, 2]
    assert texts[0] == texts[1] == [plain.greedy(lm, rows[0], NEW)]


def test_lengths_in_a_bucket_seen_before_compile_nothing(lm, prompts, monkeypatch):
    if keras.backend.backend() == "torch":
        pytest.skip("nothing is compiled on PyTorch")
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    traced = []
    traced_step = type(lm).step
    monkeypatch.setattr(
        type(lm), "step", lambda self, *args: traced.append(1) or traced_step(self, *args)
    )
    new_tokens(other, prompts[4:], 5, stops=(1,))
    first = len(traced)
    assert first >= 2  # one prefill, one decode
    for length, count in [(15, 4), (14, 6), (9, 11), (12, 15), (2, 1)]:
        rows = [(prompts[4] * 2)[:length]]
        assert len(new_tokens(other, rows, count, stops=(1,))[0]) <= count
    assert len(traced) == first


def test_what_ran_before_leaves_no_trace(lm, prompts, greedy_texts):
    new_tokens(lm, prompts[::-1], 3)
    assert new_tokens(lm, prompts) == greedy_texts


def test_new_weights_are_used_at_once(lm, prompts, greedy_texts):
    embeddings = lm.backbone.token_embedding.embeddings
    saved = keras.ops.convert_to_numpy(embeddings).copy()
    embeddings.assign(saved[::-1].copy())
    changed = [plain.greedy(lm, row, 4) for row in prompts]
    assert changed != [row[:4] for row in greedy_texts]
    assert new_tokens(lm, prompts, 4) == changed
    embeddings.assign(saved)
    assert new_tokens(lm, prompts, 4) == [row[:4] for row in greedy_texts]


def test_a_sampler_is_used_as_soon_as_it_is_assigned(lm, prompts, greedy_texts):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(run_eagerly=True)  # so that each of them is quick to try
    row, expected = prompts[1:2], [greedy_texts[1][:2]]
    for seed in range(2):
        other.sampler = "greedy"
        assert new_tokens(other, row, 2) == expected
        # A new object may lie where the last sampler was.
        other.sampler = keras_hub.samplers.RandomSampler(temperature=1e6, seed=seed)
        assert new_tokens(other, row, 2) != expected


def test_a_setting_of_a_sampler_is_used_as_soon_as_it_is_changed(lm, prompts):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(sampler=keras_hub.samplers.TopKSampler(k=8, seed=1))
    new_tokens(other, prompts[:1], 4)
    other.sampler.k = 1
    assert new_tokens(other, prompts[:1], 4) == new_tokens(lm, prompts[:1], 4)


def test_a_model_that_was_not_compiled_is_greedy(lm, prompts, greedy_texts):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone, compile=False)
    assert new_tokens(other, prompts[1:2], 3) == [greedy_texts[1][:3]]


def test_eager_execution_gives_the_same(lm, prompts, greedy_texts):
    other = keras_rgemma.RGemmaCausalLM(lm.backbone)
    other.compile(sampler="greedy", run_eagerly=True)
    assert new_tokens(other, prompts[1:3], 2) == [row[:2] for row in greedy_texts[1:3]]
