"""Keras still lays variables and batches out as keras_internals needs it."""

import jax
import keras
import numpy as np
import pytest
from keras.src.backend.jax import distribution_lib

from keras_rgemma.keras_internals import distribution, variables

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="keras.distribution is for JAX"
)
MESH = ((1, 1), ("batch", "model"), ["cpu:0"])


@pytest.fixture
def mesh():
    """A mesh of one device with a distribution in force."""
    mesh = keras.distribution.DeviceMesh(*MESH)
    layouts = keras.distribution.LayoutMap(mesh)
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layouts, batch_dim_name="batch")
    )
    yield mesh
    keras.distribution.set_distribution(None)


def spec(variable):
    return variable.value.sharding.spec


def test_a_variable_lies_where_it_is_told_to(mesh):
    layout = keras.distribution.TensorLayout((None, "model"), mesh)
    variable = keras.Variable(np.ones((2, 4)))
    assert "model" not in spec(variable)
    variables.set_layout(variable, layout)
    assert spec(variable) == jax.sharding.PartitionSpec(None, "model")
    variable.assign(np.zeros((2, 4)))
    assert spec(variable) == jax.sharding.PartitionSpec(None, "model")


def test_a_variable_without_a_value_keeps_its_layout_for_later(mesh):
    layout = keras.distribution.TensorLayout((None, "model"), mesh)
    with variables.uninitialized_variables():
        variable = keras.Variable("ones", shape=(2, 4))
    variables.set_layout(variable, layout)
    assert not variables.has_value(variable)
    variables.initialize(variable)
    assert spec(variable) == jax.sharding.PartitionSpec(None, "model")


def test_variables_that_were_made_before_get_a_copy_on_each_device():
    before = keras.Variable(np.ones((2, 4)))
    assert not hasattr(before.value.sharding, "mesh")
    mesh = keras.distribution.DeviceMesh(*MESH)
    with keras.distribution.DataParallel(device_mesh=mesh).scope():
        layout = keras.distribution.TensorLayout((None, "model"), mesh)
        placed = keras.Variable(np.ones((2, 4)))
        variables.set_layout(placed, layout)
        variables.replicate_unplaced([before, placed])
    assert before.value.sharding.mesh == mesh.backend_mesh
    assert "model" in spec(placed) and "model" not in spec(before)


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
