"""Files go to and from the shards of a mesh of eight devices, without a whole copy on one."""

import files_of_shards
import keras
import pytest
from processes import results_of

pytestmark = [
    pytest.mark.skipif(keras.config.backend() != "jax", reason="keras.distribution is for JAX"),
    pytest.mark.slow,
]


def results(scenario):
    return results_of(files_of_shards.__file__, scenario)


def test_no_device_gets_a_whole_matrix_and_the_host_keeps_none():
    assert len(results("loading")) == 4 * len(files_of_shards.MESHES)
    for name, result in results("loading").items():
        assert not result["whole"], name
        assert result["kept"] == [], name
        # Sums of float32 in another order, of logits up to 30.
        assert result["error"] < 5e-5 and result["again"] < 5e-5, (name, result)


def test_training_goes_on_on_another_mesh():
    found = {name: x for name, x in results("orbax").items() if isinstance(x, list)}
    assert len(found) == 6
    for name, (loaded, trained, is_laid_out) in found.items():
        # The checkpoint was written in the middle of an epoch, while training went on.
        assert loaded < 1e-6, name  # one was trained with the callback and one without
        assert trained < 1e-5 and is_laid_out, (name, trained)


@pytest.mark.parametrize(
    "name, words",
    [
        ("other sizes", ("ValueError", "weights", "of another shape", "expected")),
        ("other optimizer", ("ValueError", "optimizer", "missing", "same class")),
        ("lora", ("ValueError", "weights", "missing", "lora_kernel_a", "`enable_lora`")),
    ],
)
def test_another_model_is_refused(name, words):
    message = results("orbax")[name]
    assert all(word in message for word in words), message
