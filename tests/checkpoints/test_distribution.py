"""With a distribution, weights go from the file to their shards."""

import os
import pathlib
import subprocess
import sys

import keras
import pytest

import tiny

TESTS = pathlib.Path(__file__).parent.parent
# A process of its own, because JAX counts its devices once.
SCRIPT = """
import sys
import jax
import keras
import numpy as np
from keras.src.backend.jax import distribution_lib
import tiny
from keras_rgemma import RGemmaCausalLM

plain = RGemmaCausalLM.from_preset(sys.argv[1])
ids = tiny.arrays()["token_ids"]
scores = plain.score(ids)
mesh = keras.distribution.DeviceMesh((1, 2), ("batch", "model"), keras.distribution.list_devices())
layout = keras.distribution.LayoutMap(mesh)
layout["token_embedding/embeddings"] = ("model", None)
layout["mlp_block/ffw_.*/kernel"] = (None, "model")
keras.distribution.set_distribution(
    keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")
)
distributed, parts = [], []
distribute, from_callback = distribution_lib.distribute_tensor, jax.make_array_from_callback

def watch(tensor, layout):
    distributed.append(tensor.shape)
    return distribute(tensor, layout)

def watch_parts(shape, sharding, part):
    def watched(index):
        value = part(index)
        parts[-1].append(value.shape)
        return value

    parts.append([])
    return from_callback(shape, sharding, watched)

distribution_lib.distribute_tensor, jax.make_array_from_callback = watch, watch_parts
lm = RGemmaCausalLM.from_preset(sys.argv[1])
weights = lm.backbone.weights
assert len(parts) == len(weights), parts  # none was whole on a device before
assert not {tuple(weight.shape) for weight in weights} & set(distributed), distributed
assert parts.count([(200, 16)] * 2) == 1, parts
for one, other in zip(lm.weights, plain.weights, strict=True):
    np.testing.assert_array_equal(np.asarray(one.value), np.asarray(other.value))
shards = lm.backbone.token_embedding.embeddings.value.addressable_shards
assert [shard.data.shape for shard in shards] == [(200, 16)] * 2
assert len({shard.device for shard in shards}) == 2
np.testing.assert_allclose(lm.score(ids), scores, rtol=2e-5, atol=2e-5)
print("equal")
"""


@pytest.mark.skipif(keras.config.backend() != "jax", reason="keras.distribution is for JAX")
def test_weights_go_straight_to_their_shards(tmp_path):
    lm = tiny.randomize(tiny.causal_lm())
    lm.export_to_transformers(tmp_path / "model", dtype="float32")
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, tmp_path / "model"],
        env={
            **os.environ,
            "PYTHONPATH": f"{TESTS}{os.pathsep}{TESTS.parent}",
            "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=2",
        },
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and done.stdout.endswith("equal\n"), done.stderr[-3000:]
