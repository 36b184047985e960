"""Every format of files follows one interface, which the loader needs and nothing else."""

import types

import numpy as np
import pytest

import tiny
from backend_independent import backend_independent
from keras_rgemma.checkpoints import export, names
from keras_rgemma.checkpoints.folder import open_checkpoint
from keras_rgemma.checkpoints.loading import load
from keras_rgemma.checkpoints.source import TensorSource


@backend_independent
@pytest.mark.parametrize("target", export.TARGETS)
def test_a_format_is_a_source_of_tensors(target, tmp_path):
    backbone = tiny.randomize(tiny.causal_lm(None)).backbone
    export.export(backbone, None, tmp_path / "weights", target)
    source = open_checkpoint(str(tmp_path / "weights")).open_weights()
    assert isinstance(source, TensorSource)
    assert source.format == export.TARGETS[target]
    assert (
        set(source.shapes)
        == set(source.dtypes)
        == set(names.tensors(backbone.config, source.format))
    )
    for name, shape in source.shapes.items():
        array = source.read(name)
        assert (array.shape, array.dtype) == (shape, source.dtypes[name])
        array[...] = 0  # memory of its own
    assert any(source.read(name).any() for name in source.shapes)
    assert set(source.copies) <= {names.LM_HEAD}


@backend_independent
def test_a_source_of_another_kind_can_be_loaded():
    lm = tiny.randomize(tiny.causal_lm(None))
    tensors = dict(export.tensors(lm.backbone, "flax", "float32"))
    source = types.SimpleNamespace(
        format="flax",
        shapes={name: array.shape for name, array in tensors.items()},
        dtypes={name: array.dtype for name, array in tensors.items()},
        copies={},
        read=tensors.__getitem__,
    )
    assert isinstance(source, TensorSource)
    config = lm.backbone.config
    backbone = load(config, source, lambda: type(lm.backbone)(**config.to_dict()))
    for weight, expected in zip(backbone.weights, lm.backbone.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(weight), tiny.numpy(expected))
