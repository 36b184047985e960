"""On PyTorch a model is a module whose parameters are its weights, at any time."""

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny

if keras.config.backend() != "torch":
    pytest.skip("modules of PyTorch", allow_module_level=True)

import torch

INPUTS = tiny.arrays(rows=2, length=9)
TEXT = "A river is a large stream of water."


def built():
    return tiny.causal_lm()


def loaded(tmp_path):
    built().save_to_preset(tmp_path / "preset")
    return keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "preset")


def from_keras_file(tmp_path):
    built().save(tmp_path / "lm.keras")
    return keras.saving.load_model(tmp_path / "lm.keras")


def from_hugging_face(tmp_path):
    built().export_to_transformers(tmp_path / "hf")
    return keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "hf")


def cloned(tmp_path):
    lm = keras_rgemma.RGemmaCausalLM.from_config(built().get_config())
    lm.preprocessor = tiny.preprocessor()  # a config has no vocabulary
    return lm


MAKERS = {
    "built": lambda tmp_path: built(),
    "loaded": loaded,
    "from a .keras file": from_keras_file,
    "from a folder of Hugging Face": from_hugging_face,
    "cloned": cloned,
    "shipped": lambda tmp_path: keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en"),
}


def check(lm):
    """The parameters are the weights, each once; those to train require gradients."""
    for model in (lm, lm.backbone):
        parameters = list(model.parameters())
        assert {id(x) for x in model.weights} and len(parameters) == len(set(map(id, parameters)))
        assert {id(x.value) for x in model.weights} <= set(map(id, parameters))
        trained = {id(x) for x in parameters if x.requires_grad}
        assert trained == {id(x.value) for x in model.trainable_weights}
        state = model.state_dict()
        assert {x.data_ptr() for x in state.values()} == {x.data_ptr() for x in parameters}
        assert len(state) == len(parameters)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_parameters_are_the_weights_from_the_start(make, tmp_path):
    check(make(tmp_path))


def test_parameters_follow_lora_quantization_and_a_state_of_training(tmp_path):
    lm = tiny.causal_lm(dropout=0.1)
    check(lm)
    lm.backbone.enable_lora(2)
    check(lm)
    assert sum(x.requires_grad for x in lm.parameters()) == 2 * len(tiny.LINEAR)
    lm.backbone.disable_lora()
    check(lm)
    lm.backbone.enable_lora(3)
    lm.backbone.merge_lora()
    check(lm)
    lm.quantize("int8")
    check(lm)
    lm.backbone.enable_lora(2)
    check(lm)
    lm.fit([TEXT], verbose=0)
    check(lm)


@pytest.mark.parametrize("change", [None, "lora", "qlora"])
def test_a_loop_of_pytorch_changes_what_is_generated(change):
    lm = tiny.wordy(tiny.causal_lm())
    if change == "qlora":
        lm.quantize("int8")
    if change:
        lm.backbone.enable_lora(4)
    before = lm.generate("A river", max_new_tokens=8)
    x, y, sample_weight = lm.preprocessor([TEXT])
    x = {name: torch.as_tensor(np.array(value)) for name, value in x.items()}
    y, sample_weight = (torch.as_tensor(np.array(value)) for value in (y, sample_weight))
    optimizer = torch.optim.AdamW([p for p in lm.parameters() if p.requires_grad], lr=0.03)
    losses = []
    for _ in range(8):
        optimizer.zero_grad()
        hidden = lm.backbone(x, training=True)
        embeddings = lm.backbone.token_embedding(torch.arange(400))
        logits = 30 * torch.tanh(hidden @ embeddings.T / 30)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), y.flatten().long(), reduction="none"
        )
        loss = (loss * sample_weight.flatten()).sum() / sample_weight.sum()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    assert lm.generate("A river", max_new_tokens=8) != before
    np.testing.assert_allclose(lm.evaluate([TEXT], verbose=0)[0], losses[-1], rtol=0.5)


def test_a_state_dict_goes_into_another_model():
    lm, other = tiny.randomize(built()), tiny.randomize(built(), seed=3)
    tensors = [weight.value for weight in other.weights]
    for assign in (False, True):
        tiny.randomize(other, seed=3)
        other.load_state_dict(lm.state_dict(), assign=assign)
        np.testing.assert_array_equal(tiny.numpy(other(INPUTS)), tiny.numpy(lm(INPUTS)))
    assert all(a is b.value for a, b in zip(tensors, other.weights, strict=True))
    lm.backbone.enable_lora(2)
    with pytest.raises(RuntimeError, match="lora_kernel_a"):
        other.load_state_dict(lm.state_dict())


# === Inference mode ===


def use(lm):
    lm.backbone.enable_lora(2)
    lm.fit([TEXT], verbose=0)
    lm.backbone.merge_lora()
    lm.compile(keras.optimizers.SGD(0.1), sampler="top_k")
    lm.fit([TEXT], verbose=0)
    assert lm.generate("A river", max_new_tokens=2)


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS.keys())
def test_a_model_made_in_inference_mode_learns(make, tmp_path):
    with torch.inference_mode():
        lm = make(tmp_path)
    assert not any(x.is_inference() for x in lm.parameters())
    check(lm)
    use(lm)


@pytest.mark.parametrize(
    "change",
    [
        lambda lm: lm.backbone.enable_lora(2),
        lambda lm: lm.quantize("int8"),
        lambda lm: lm.compile(sampler="random"),  # an optimizer of one's own is made outside
        lambda lm: lm.generate("A river", max_new_tokens=2),
        lambda lm: lm.evaluate([TEXT], verbose=0),
        lambda lm: lm.set_weights(lm.get_weights()),
    ],
    ids=["enable_lora", "quantize", "compile", "generate", "evaluate", "set_weights"],
)
def test_a_model_changed_in_inference_mode_learns(change):
    lm = tiny.causal_lm()
    with torch.inference_mode():
        change(lm)
    if lm.backbone.token_embedding.quantization_mode:
        lm.backbone.enable_lora(2)
    lm.fit([TEXT], verbose=0)
    assert not any(x.is_inference() for x in lm.parameters())
    assert lm.generate("A river", max_new_tokens=2)


# === Conversions ===


def test_a_model_moves_to_where_it_is():
    lm = tiny.randomize(built())
    expected = tiny.numpy(lm(INPUTS))
    assert lm.to("cpu").float().to(torch.float32).cpu() is lm
    np.testing.assert_array_equal(tiny.numpy(lm(INPUTS)), expected)


@pytest.mark.parametrize(
    "convert, says",
    [
        (lambda lm: lm.half(), "float16.*from_preset"),
        (lambda lm: lm.to(torch.bfloat16), "bfloat16.*from_preset"),
        (lambda lm: lm.double(), "float64.*from_preset"),
        (lambda lm: lm.to("meta"), "computes on 'cpu'. Received: 'meta'.*KERAS_TORCH_DEVICE"),
    ],
)
def test_another_conversion_says_what_to_do(convert, says):
    lm = tiny.randomize(built())
    expected = tiny.numpy(lm(INPUTS))
    for model in (lm, lm.backbone, torch.nn.ModuleList([lm])):
        with pytest.raises(ValueError, match=says):
            convert(model)
    np.testing.assert_array_equal(tiny.numpy(lm(INPUTS)), expected)


def test_quantization_counts_after_a_generation():
    lm, other = tiny.wordy(tiny.causal_lm()), tiny.causal_lm()
    other.set_weights(lm.get_weights())
    lm.generate("A river", max_new_tokens=4)
    for model in (lm, other):
        model.quantize("int4")
    assert lm.generate("A river", max_new_tokens=8) == other.generate("A river", max_new_tokens=8)
