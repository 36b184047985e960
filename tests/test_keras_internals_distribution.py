"""Keras still divides batches and places variables as keras_internals needs it.

On several devices see tests/distribution.
"""

import keras
import numpy as np
import pytest

if keras.config.backend() != "jax":
    pytest.skip("keras.distribution is for JAX", allow_module_level=True)

import jax
from keras.src.backend.jax import distribution_lib

from keras_rgemma.keras_internals import distribution, variables


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


def test_variables_get_a_layout_now_or_with_their_first_value(mesh):
    layout = keras.distribution.TensorLayout((None, "model"), mesh)
    now, rest = (keras.Variable(np.ones((2, 4), "float32")) for _ in "12")
    with variables.uninitialized_variables():
        later = keras.Variable(initializer="ones", shape=(2, 4))
    for variable in (now, rest):
        variable._layout = None  # as of one that was made before the distribution was set
    for variable in (now, later):
        variables.set_layout(variable, layout)
        assert variable._layout is layout
    variables.initialize(later)
    variables.replicate_unplaced([now, later, rest])
    assert now._layout is later._layout is layout
    assert tuple(rest._layout.axes) == (None, None)
    for variable in (now, later, rest):
        np.testing.assert_array_equal(variable, np.ones((2, 4)))
