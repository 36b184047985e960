"""Keras still divides batches as keras_internals needs it; for variables see tests/distribution."""

import jax
import keras
import numpy as np
import pytest
from keras.src.backend.jax import distribution_lib

from keras_rgemma.keras_internals import distribution

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="keras.distribution is for JAX"
)


@pytest.fixture
def mesh():
    """A mesh of one device with a distribution in force."""
    mesh = keras.distribution.DeviceMesh((1, 1), ("batch", "model"), ["cpu:0"])
    layouts = keras.distribution.LayoutMap(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    )
    yield mesh
    keras.distribution.set_distribution(None)


def test_the_rows_of_a_batch_that_keras_cannot_divide_are_named(mesh, monkeypatch):
    def refuse(*args, **kwargs):
        raise ValueError("the sharding of array axis 0")

    layout = keras.distribution.TensorLayout(("batch", None), mesh)
    monkeypatch.setattr(jax, "make_array_from_process_local_data", refuse)
    with (
        pytest.raises(distribution.IndivisibleRowsError, match=r"'batch' .* 1 devices, .* 3 rows"),
        distribution.dividing_rows(),
    ):
        distribution_lib.distribute_data_input(np.ones((3, 2)), layout, "batch")
    with pytest.raises(ValueError, match="axis 0"), distribution.dividing_rows():
        refuse()
