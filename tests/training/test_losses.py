"""Twenty steps with LoRA: the same losses on every backend.

    python tests/finetuning/test_losses.py

writes what they are compared with, on any backend.
"""

import json
import pathlib
import sys
import tempfile

if __name__ == "__main__":
    sys.path.append(str(pathlib.Path(__file__).parent.parent))

import numpy as np

import keras_rgemma
import tiny
from keras_rgemma.finetuning import AdamW
from keras_rgemma.lora import backbone as lora

FILE = pathlib.Path(__file__).parent / "expected_losses.json"
STEPS = 20


def adapter(path):
    """Writes an adapter file of which every number is known."""
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    lm.backbone.enable_lora(4, alpha=8)
    random = np.random.RandomState(0)
    for layer in lora.lora_layers_by_path(lm.backbone).values():
        a = layer.lora_kernel_a
        a.assign(random.uniform(-1, 1, a.shape) * (6 / a.shape[-2]) ** 0.5)
    lm.backbone.save_lora_weights(path)


def losses(folder):
    """The loss of each step, and at the end of one that no step has seen."""
    path = pathlib.Path(folder) / "start.lora.h5"
    adapter(path)
    lm = keras_rgemma.RGemmaCausalLM.from_preset("rgemma_tiny_en")
    lm.backbone.load_lora_weights(path)
    lm.preprocessor.sequence_length = 32
    lm.compile(AdamW(3e-3), weighted_metrics=[])
    held_out = lm.preprocessor(list(tiny.SENTENCES[-1:]))
    found = []
    for step in range(STEPS):
        texts = [tiny.SENTENCES[(2 * step + i) % 8] for i in (0, 1)]
        found.append(float(lm.train_on_batch(texts)))
    return [*found, float(lm.test_on_batch(held_out[0], held_out[1], held_out[2]))]


def test_every_backend_has_the_same_losses(tmp_path):
    found, expected = losses(tmp_path), json.loads(FILE.read_text())
    np.testing.assert_allclose(found, expected, rtol=1e-4)
    assert np.mean(found[STEPS - 4 : STEPS]) < 0.7 * np.mean(found[:4])


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        FILE.write_text(json.dumps(losses(folder)) + "\n")
