"""The choice of an implementation: its order, its errors, and how far it reaches."""

import importlib
import pathlib
import threading

import keras
import numpy as np
import pytest

import keras_rgemma
import tiny
from keras_rgemma.backend import OPERATIONS, implementation_key, keep_choices, resolve

BACKEND = keras.config.backend()
OPS = pathlib.Path(keras_rgemma.__file__).parent / "ops"


def module_of(operation):
    return importlib.import_module(f"keras_rgemma.ops.{operation}.{BACKEND}")


@pytest.fixture(autouse=True)
def default_choices():
    yield
    keras_rgemma.set_implementation(**dict.fromkeys(OPERATIONS, "auto"))


@pytest.fixture
def calls(monkeypatch):
    """A dict of lists by operation, which grow with each call of the implementation "listed"."""
    calls = {}
    for operation in OPERATIONS:
        module, calls[operation] = module_of(operation), []
        default = module.IMPLEMENTATIONS[module.default_implementation()]

        def listed(*args, default=default, seen=calls[operation], **kwargs):
            seen.append(args)
            return default(*args, **kwargs)

        monkeypatch.setitem(module.IMPLEMENTATIONS, "listed", listed)
    return calls


def name_of(operation):
    """The name of the implementation that "auto" takes."""
    function = resolve(operation)
    (name,) = (n for n, f in module_of(operation).IMPLEMENTATIONS.items() if f is function)
    return name


def test_every_operation_with_files_of_backends_is_known():
    found = [*OPS.glob(f"*/{BACKEND}.py"), *OPS.glob(f"*/{BACKEND}/__init__.py")]
    folders = {path.relative_to(OPS).parts[0] for path in found}
    assert folders == set(OPERATIONS)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_the_default_exists_on_this_backend(operation):
    module = module_of(operation)
    assert name_of(operation) == module.default_implementation()


def test_the_innermost_choice_counts(calls):
    default = name_of("linear_recurrence")
    assert default != "listed"
    keras_rgemma.set_implementation(linear_recurrence="listed")
    assert name_of("linear_recurrence") == "listed"
    assert resolve("linear_recurrence", default) is not resolve("linear_recurrence")
    with keras_rgemma.implementation(linear_recurrence=default):
        assert name_of("linear_recurrence") == default
        with keras_rgemma.implementation(cross_entropy="listed"):
            assert name_of("linear_recurrence") == default
            with keras_rgemma.implementation(linear_recurrence="listed"):
                assert name_of("linear_recurrence") == "listed"
        assert name_of("cross_entropy") != "listed"
    with keras_rgemma.implementation(linear_recurrence="auto"):
        assert name_of("linear_recurrence") == default
    keras_rgemma.set_implementation(linear_recurrence="auto")
    assert name_of("linear_recurrence") == default


def test_a_block_that_fails_leaves_no_choice(calls):
    with pytest.raises(KeyError), keras_rgemma.implementation(linear_recurrence="listed"):
        raise KeyError
    assert name_of("linear_recurrence") != "listed"


def test_a_block_belongs_to_its_thread_and_a_setting_to_all(calls):
    def in_a_thread():
        names = []
        thread = threading.Thread(target=lambda: names.append(name_of("linear_recurrence")))
        thread.start()
        thread.join()
        return names[0]

    default = name_of("linear_recurrence")
    with keras_rgemma.implementation(linear_recurrence="listed"):
        assert in_a_thread() == default
    keras_rgemma.set_implementation(linear_recurrence="listed")
    assert in_a_thread() == "listed"


def test_a_bound_function_keeps_the_choices_in_another_thread(calls):
    with keras_rgemma.implementation(linear_recurrence="listed"):
        function = keep_choices(lambda: name_of("linear_recurrence"))
    keras_rgemma.set_implementation(cross_entropy="listed")
    assert name_of("linear_recurrence") != "listed"
    assert function() == "listed"
    assert name_of("linear_recurrence") != "listed"


@pytest.mark.parametrize("choose", [keras_rgemma.set_implementation, keras_rgemma.implementation])
def test_what_does_not_exist_is_refused_at_once(choose, calls):
    def run(**implementations):
        with choose(**implementations) or pytest.fail("nothing was refused"):
            pytest.fail("the block was entered")

    with pytest.raises(ValueError, match=r"operations are \(.*'linear_recurrence'.*'recurrence'"):
        run(recurrence="auto")
    names = rf"'auto' or one of \(.*\) on the {BACKEND} backend. Received: 'quadratic'"
    with pytest.raises(ValueError, match=f"'linear_recurrence' must be {names}"):
        run(cross_entropy="listed", linear_recurrence="quadratic")
    assert name_of("cross_entropy") != "listed"


def test_the_key_is_one_object_for_the_same_choices(calls):
    before = implementation_key()
    with keras_rgemma.implementation(linear_recurrence="listed", cross_entropy="listed"):
        inside = implementation_key()
    keras_rgemma.set_implementation(cross_entropy="listed")
    with keras_rgemma.implementation(linear_recurrence="listed"):
        assert implementation_key() is inside
    keras_rgemma.set_implementation(cross_entropy="auto")
    assert implementation_key() is before
    assert hash(inside) and inside != before


@pytest.fixture(scope="module")
def lm():
    lm = tiny.wordy(tiny.causal_lm())
    lm.compile(sampler="greedy", optimizer="sgd")
    return lm


IDS = np.array([[2, 300, 301, 302]])
IN_GENERATION = {
    "generate": lambda lm: lm.generate("What is a river?", max_length=16),
    "stream": lambda lm: "".join(lm.stream("What is a river?", max_length=16)),
    "score": lambda lm: tiny.numpy(lm.score(IDS)).tolist(),
}


@pytest.mark.parametrize("name", IN_GENERATION)
def test_the_choice_reaches_a_model_that_was_compiled_without_it(lm, calls, name):
    run, seen = IN_GENERATION[name], calls["linear_recurrence"]
    before = run(lm)
    assert not seen
    with keras_rgemma.implementation(linear_recurrence="listed"):
        assert run(lm) == before
    assert seen
    seen.clear()
    assert run(lm) == before
    assert not seen


@pytest.mark.slow
def test_the_choice_reaches_training(lm, calls):
    texts = ["A river is a large stream of water."] * 2

    def train():
        lm.fit(texts, epochs=1, verbose=0)
        lm.evaluate(texts, verbose=0)

    train()
    assert not any(calls.values())
    keras_rgemma.set_implementation(**dict.fromkeys(OPERATIONS, "listed"))
    train()
    assert calls["linear_recurrence"] and calls["cross_entropy"]
    keras_rgemma.set_implementation(**dict.fromkeys(OPERATIONS, "auto"))
    for seen in calls.values():
        seen.clear()
    train()
    assert not any(calls.values())


@pytest.mark.skipif(BACKEND != "torch", reason="others recompute where they trace")
def test_what_is_computed_again_in_another_thread_keeps_the_choice(calls):
    lm = tiny.causal_lm(gradient_checkpointing=True)
    inputs, seen = tiny.arrays(), calls["linear_recurrence"]
    with keras_rgemma.implementation(linear_recurrence="listed"):
        loss = keras.ops.sum(lm(inputs, training=True))
    in_forward = len(seen)
    thread = threading.Thread(target=loss.backward)
    thread.start()
    thread.join()
    assert len(seen) == 2 * in_forward > 0
