"""What else Keras does with a model: clones, cuts, recomputation, other layers, subclasses."""

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny
from backend_independent import backend_independent

BACKEND = keras.config.backend()
INPUTS = tiny.arrays(rows=4, length=9)
LABELS = np.roll(INPUTS["token_ids"], -1, axis=1)
WEIGHTS = INPUTS["padding_mask"].astype("float32")
# A compiler adds up in another order when it puts together other operations.
CLOSE = {"rtol": 1e-5, "atol": 1e-5}


@pytest.fixture
def lm():
    return tiny.randomize(tiny.causal_lm(None))


def loss_of(lm, name="loss", **kwargs):
    """The loss of one step of training, before the step."""
    history = lm.fit(INPUTS, LABELS, sample_weight=WEIGHTS, verbose=0, **kwargs).history
    return history[name][0]


def sgd():
    return keras.optimizers.SGD(0.1)


def same_weights(model, like):
    for weight, other in zip(model.weights, like.weights, strict=True):
        np.testing.assert_allclose(tiny.numpy(weight), tiny.numpy(other), **CLOSE)


# === Clones and cuts ===


def test_a_clone_of_the_backbone_computes_the_same_and_shares_nothing(lm):
    clone = keras.models.clone_model(lm.backbone)
    clone.set_weights(lm.backbone.get_weights())
    expected = tiny.numpy(lm.backbone(INPUTS))
    np.testing.assert_allclose(tiny.numpy(clone(INPUTS)), expected, **CLOSE)
    tiny.randomize(clone)
    np.testing.assert_array_equal(tiny.numpy(lm.backbone(INPUTS)), expected)


def test_a_clone_of_the_task_is_a_model_of_logits_that_learns(lm):
    lm.compile(sgd())
    clone = keras.models.clone_model(lm)
    # Keras makes each layer anew, the embedding for the logits, too.
    *weights, head = clone.weights
    for weight, like in zip(weights, lm.weights, strict=True):
        weight.assign(tiny.numpy(like))
    head.assign(tiny.numpy(lm.backbone.token_embedding.embeddings))
    np.testing.assert_allclose(tiny.numpy(clone(INPUTS)), tiny.numpy(lm(INPUTS)), **CLOSE)
    assert loss_of(clone) == pytest.approx(loss_of(lm), rel=1e-5)
    assert clone.optimizer is not lm.optimizer


def test_a_model_of_the_same_class_comes_from_the_config(lm):
    clone = keras_rgemma.RGemmaCausalLM.from_config(lm.get_config())
    clone.set_weights(lm.get_weights())
    prompt = {name: array[:1] for name, array in INPUTS.items()}
    outputs = [x.generate(prompt, max_new_tokens=4, stop_token_ids=None) for x in (lm, clone)]
    np.testing.assert_array_equal(*(x["token_ids"] for x in outputs))


def test_a_cut_model_is_saved_and_loaded(lm, tmp_path):
    backbone = lm.backbone
    cut = keras.Model(backbone.input, backbone.get_layer("block_0").output)
    expected = tiny.numpy(cut(INPUTS))
    cut.save(tmp_path / "cut.keras")
    loaded = keras.saving.load_model(tmp_path / "cut.keras")
    np.testing.assert_allclose(tiny.numpy(loaded(INPUTS)), expected, **CLOSE)


def test_compile_is_saved_as_it_was(lm, tmp_path):
    lm.compile(sgd())
    lm.save(tmp_path / "lm.keras")
    loaded = keras.saving.load_model(tmp_path / "lm.keras")
    seen = tiny.calls_of([loaded])
    assert loss_of(loaded) == pytest.approx(loss_of(lm), rel=1e-5)
    assert seen


# === `keras.RematScope` ===


@pytest.mark.parametrize(
    "dropout, scope",
    [
        (0.3, {"mode": "full"}),
        (0.0, {"mode": "activations"}),
        (0.0, {"mode": "larger_than", "output_size_threshold": 64}),
        (0.3, {"mode": "list_of_layers", "layer_names": ["block_1", "ffw_up"]}),
    ],
    ids=["full", "activations", "larger_than", "list_of_layers"],
)
def test_training_is_the_same_in_a_remat_scope(scope, dropout):
    lm = tiny.causal_lm(None, dropout=dropout)
    with keras.RematScope(**scope):
        recomputing = tiny.causal_lm(None, dropout=dropout)
    recomputing.set_weights(lm.get_weights())
    losses = []
    for model in (lm, recomputing):
        model.compile(sgd())
        keras.utils.set_random_seed(3)
        for seed in model.backbone.variables:
            if "seed" in seed.path:
                seed.assign([1, 2])
        losses.append(loss_of(model, epochs=2, shuffle=False))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    same_weights(recomputing, lm)


def test_a_model_of_a_remat_scope_generates_and_has_lora():
    with keras.RematScope(mode="full"):
        lm = tiny.causal_lm()
    lm.backbone.enable_lora(2)
    lm.fit(["A river is a large stream of water."], verbose=0)
    _, state = lm.generate("A river", max_new_tokens=3, return_state=True)
    assert lm.generate("", state=state, max_new_tokens=2)
    lm.quantize("int8")
    lm.fit(["A river is a large stream of water."], verbose=0)


# === Layers of a user's own around the blocks ===


@keras.saving.register_keras_serializable("test_keras_models")
class Passing(keras.layers.Layer):
    """Takes and returns what the block in it does."""

    def __init__(self, block, **kwargs):
        super().__init__(**kwargs)
        self.block = block

    def call(self, *args, **kwargs):
        return self.block(*args, **kwargs)


class Scaled(Passing):
    """Scales what the block gives by a weight of its own."""

    def build(self, input_shape):
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")
        self.built = True

    def call(self, x, *args, return_state=False, **kwargs):
        outputs = self.block(x, *args, return_state=return_state, **kwargs)
        scale = keras.ops.cast(self.scale, x.dtype)
        return (scale * outputs[0], outputs[1]) if return_state else scale * outputs


def wrapped(lm, cls, index=1, **kwargs):
    layers = lm.backbone.transformer_layers
    layers[index] = cls(layers[index], **kwargs)
    return layers[index]


TEXT = "A river is a large stream of water."


def outputs(lm):
    """What a model says in training, scoring and generation."""
    text, state = lm.generate("A river", max_new_tokens=4, return_state=True)
    return {
        "logits": tiny.numpy(lm(INPUTS)),
        "score": tiny.numpy(lm.score(**INPUTS)),
        "loss": lm.evaluate([TEXT], verbose=0),
        "text": text,
        "more": lm.generate(" of", state=state, max_new_tokens=4),
        "score of more": tiny.numpy(lm.score(INPUTS["token_ids"][:1], state=state)),
    }


@pytest.fixture(scope="module")
def plain():
    """A model without wrappers, and what it says."""
    lm = tiny.wordy(tiny.causal_lm())
    return lm, outputs(lm)


@pytest.mark.parametrize("where", [0, 1, "the whole list"])
def test_a_wrapper_that_passes_everything_on_changes_nothing(plain, where, tmp_path):
    lm = tiny.causal_lm()
    lm.set_weights(plain[0].get_weights())
    expected = plain[1]
    if where in (0, 1):
        wrapped(lm, Passing, where)
    else:
        lm.backbone.transformer_layers = [Passing(x) for x in lm.backbone.transformer_layers]
    found = outputs(lm)
    for name, value in expected.items():
        if isinstance(value, str):
            assert found[name] == value, name
        else:
            np.testing.assert_allclose(found[name], value, err_msg=name, **CLOSE)
    like = tiny.causal_lm()
    like.set_weights(lm.get_weights())
    for model in (like, lm):
        model.compile(sgd())
        model.fit([TEXT], verbose=0)
    same_weights(lm, like)
    lm.save_to_preset(tmp_path / "preset")
    loaded = keras_rgemma.RGemmaCausalLM.from_preset(tmp_path / "preset")
    same_weights(loaded, lm)


@backend_independent
def test_a_layer_that_is_called_otherwise_is_refused():
    class OfOne(keras.layers.Layer):
        def call(self, x):
            return x

    backbone = tiny.backbone()
    before = list(backbone.transformer_layers)
    message = r"OfOne cannot replace a block.*\*\*kwargs\)`\. Received: call\(x\)"
    for index, layers in ((0, OfOne()), (slice(0, 1), [OfOne()])):
        with pytest.raises(TypeError, match=message):
            backbone.transformer_layers[index] = layers
    with pytest.raises(TypeError, match=message):
        backbone.transformer_layers = [OfOne(), *before[1:]]
    assert list(backbone.transformer_layers) == before


def test_a_wrapper_counts_everywhere_and_is_trained(plain, tmp_path):
    lm = tiny.causal_lm()
    lm.set_weights(plain[0].get_weights())
    before = plain[1]
    wrapper = wrapped(lm, Scaled, 0)  # the last norm would undo it behind the last block
    lm.evaluate([TEXT], verbose=0)
    assert any(weight is wrapper.scale for weight in lm.trainable_weights)
    wrapper.scale.assign(1.5)
    after = outputs(lm)
    for name in ("logits", "score", "loss", "score of more"):
        assert np.abs(np.array(after[name]) - before[name]).max() > 1e-3, name
    # The same scale in one pass, as `fit` computes it, and token by token.
    # Two programs of float32 that add up in other orders, next to the largest logit.
    largest = np.abs(after["score"]).max()
    np.testing.assert_allclose(after["logits"], after["score"], 0, 1e-5 * largest)
    lm.compile(sgd())
    lm.fit([TEXT], verbose=0)
    assert float(tiny.numpy(wrapper.scale)) != 1.5
    lm.save_weights(tmp_path / "all.weights.h5")
    other = tiny.causal_lm()
    wrapped(other, Scaled, 0)
    other.load_weights(tmp_path / "all.weights.h5")
    same_weights(other, lm)
    np.testing.assert_allclose(tiny.numpy(other(INPUTS)), tiny.numpy(lm(INPUTS)), **CLOSE)


@pytest.mark.parametrize("dtype", ["bfloat16", "mixed_bfloat16"])
def test_a_wrapper_of_another_dtype_keeps_the_state(dtype):
    # Its own dtype is float32, in which Keras hands everything on.
    lm = tiny.wordy(tiny.causal_lm(dtype=dtype))
    expected = outputs(lm)
    wrapped(lm, Passing, 0)
    wrapped(lm, Passing, 1)
    found = outputs(lm)
    assert (found["text"], found["more"]) == (expected["text"], expected["more"])


@pytest.mark.parametrize("size", [1, 3])
def test_another_number_of_layers_is_refused(lm, size):
    block = lm.backbone.transformer_layers[0]
    lm.backbone.transformer_layers = [block] * size
    for call in (lambda: lm(INPUTS), lambda: lm.score(**INPUTS)):
        with pytest.raises(ValueError, match=f"must hold 2 layers. Received: {size}"):
            call()


# === Subclasses ===


@keras.saving.register_keras_serializable("test_keras_models")
class Seeing(keras_rgemma.RGemmaCausalLM):
    """Notes what each method sees."""

    backbone_cls = None  # else KerasHub takes it for the class of presets

    def note(self, name, **seen):
        if not hasattr(self, "seen"):
            object.__setattr__(self, "seen", {})
        shapes = keras.tree.map_structure(lambda x: len(x.shape), seen)
        self.seen[name] = shapes


class OwnCall(Seeing):
    def call(self, inputs, training=None, mask=None):
        outputs = super().call(inputs, training=training)
        self.note("call", x=dict(inputs), y_pred=outputs)
        return outputs


class OwnLoss(Seeing):
    def compute_loss(self, x=None, y=None, y_pred=None, sample_weight=None, training=True):
        self.note("compute_loss", x=dict(x), y_pred=y_pred)
        return super().compute_loss(x, y, y_pred, sample_weight, training)


class OwnMetrics(Seeing):
    def compute_metrics(self, x, y, y_pred, sample_weight=None):
        self.note("compute_metrics", x=dict(x), y_pred=y_pred)
        return super().compute_metrics(x, y, y_pred, sample_weight)


class OwnStep(Seeing):
    """Calls the step of the package: what it gets is as Keras gives it."""

    def train_step(self, *args):
        x, y, _ = keras.utils.unpack_x_y_sample_weight(args[-1])
        self.note("train_step", x=dict(x), y_pred=y)
        return super().train_step(*args)


SEEN = {
    OwnCall: ("call", 3),
    OwnLoss: ("compute_loss", 3),
    OwnMetrics: ("compute_metrics", 3),
    OwnStep: ("train_step", 2),
}


@pytest.mark.parametrize("cls", SEEN)
def test_a_method_of_a_subclass_sees_what_it_sees_with_kerashub(lm, cls):
    model = cls(lm.backbone)
    name, rank = SEEN[cls]
    # No step but the first one changes the weights, which the models share.
    for each in (lm, model):
        each.compile(keras.optimizers.SGD(0.0))
    assert loss_of(model) == pytest.approx(loss_of(lm), rel=1e-5)
    inputs = {"token_ids": 2, "padding_mask": 2}
    assert model.seen[name] == {"x": inputs, "y_pred": rank}
    rows = {"x": INPUTS, "y": LABELS, "sample_weight": WEIGHTS, "verbose": 0}
    np.testing.assert_allclose(model.evaluate(**rows), lm.evaluate(**rows), **CLOSE)


def test_a_method_of_one_model_is_seen(lm):
    ranks = []
    compute_loss = lm.compute_loss

    def own(x=None, y=None, y_pred=None, sample_weight=None, training=True):
        ranks.append(len(y_pred.shape))
        return compute_loss(x, y, y_pred, sample_weight, training)

    lm.compute_loss = own
    loss_of(lm)
    assert set(ranks) == {3}


def test_a_step_of_ones_own_works(lm):
    class Own(keras_rgemma.RGemmaCausalLM):
        backbone_cls = None  # else KerasHub takes it for the class of presets

        def train_step(self, *args):
            *state, (x, y, sample_weight) = args
            if BACKEND == "jax":
                trainable, other, optimizer, metrics = state[0]

                def loss_and_others(values):
                    y_pred, others = self.stateless_call(values, other, x, training=True)
                    return self.compute_loss(x, y, y_pred, sample_weight), others

                import jax

                compute = jax.value_and_grad(loss_and_others, has_aux=True)
                (loss, other), gradients = compute(trainable)
                trainable, optimizer = self.optimizer.stateless_apply(
                    optimizer, gradients, trainable
                )
                return {"own": loss}, (trainable, other, optimizer, metrics)
            if BACKEND == "tensorflow":
                import tensorflow as tf

                with tf.GradientTape() as tape:
                    y_pred = self(x, training=True)
                    loss = self.compute_loss(x, y, y_pred, sample_weight)
                gradients = tape.gradient(loss, self.trainable_weights)
            else:
                self.zero_grad()
                y_pred = self(x, training=True)
                loss = self.compute_loss(x, y, y_pred, sample_weight)
                loss.backward()
                gradients = [weight.value.grad for weight in self.trainable_weights]
            self.optimizer.apply_gradients(zip(gradients, self.trainable_weights, strict=True))
            return {**self.compute_metrics(x, y, y_pred, sample_weight), "own": loss}

    clone = tiny.causal_lm(None)
    clone.set_weights(lm.get_weights())
    own = Own(clone.backbone)
    for model in (lm, own):
        model.compile(sgd())
    assert loss_of(own, "own") == pytest.approx(loss_of(lm), rel=1e-5)
    same_weights(own, lm)


def test_a_quantized_head_says_what_it_cannot(lm):
    lm.quantize("int8")
    lm.backbone.enable_lora(2)
    with pytest.raises(ValueError, match="override none of"):
        loss_of(OwnLoss(lm.backbone))
