"""The model as its definition reads, in float64 with NumPy, one token of one row at a time."""

import math

import keras
import numpy as np

import tiny


class Reference:
    """Goes on from the state of a model, exactly.

    Args:
        lm: `RGemmaCausalLM`.
        state: `RGemmaState` of one row.
    """

    def __init__(self, lm, state):
        self.config = lm.backbone.config
        self.weights = {
            weight.path: tiny.numpy(weight).astype("float64") for weight in lm.backbone.weights
        }
        arrays = keras.tree.map_structure(
            lambda x: np.array(tiny.numpy(x)[0], "float64"), state.consumed
        )
        self.position = int(arrays.num_tokens)
        self.layers = [layer._asdict() for layer in arrays.layers]

    def logits(self, token):
        """The logits [V] after one more token."""
        config, embeddings = self.config, self.weights["token_embedding/embeddings"]
        x = embeddings[token] * config.embedding_scale
        for i, kind in enumerate(config.layer_types):
            mix = {"recurrent": self._recurrent, "attention": self._attention}[kind]
            x = x + mix(self._norm(x, f"block_{i}/temporal_pre_norm"), i)
            x = x + self._mlp(self._norm(x, f"block_{i}/channel_pre_norm"), f"block_{i}/mlp_block")
        self.position += 1
        raw = self._norm(x, "final_norm") @ embeddings.T
        cap = config.final_logit_soft_cap
        return raw if cap is None else cap * np.tanh(raw / cap)

    def _norm(self, x, path):
        scale = 1 + self.weights[f"{path}/scale"]
        return x / np.sqrt(np.mean(x * x) + self.config.layer_norm_epsilon) * scale

    def _linear(self, x, path):
        return x @ self.weights[f"{path}/kernel"] + self.weights.get(f"{path}/bias", 0.0)

    def _mlp(self, x, path):
        gate = _gelu(self._linear(x, f"{path}/ffw_gate"))
        return self._linear(gate * self._linear(x, f"{path}/ffw_up"), f"{path}/ffw_down")

    def _recurrent(self, x, i):
        path, state = f"block_{i}/recurrent_block", self.layers[i]
        y = _gelu(self._linear(x, f"{path}/linear_y"))
        inputs = np.vstack([state["conv"], self._linear(x, f"{path}/linear_x")])
        state["conv"] = inputs[1:]
        z = (inputs * self.weights[f"{path}/conv_1d/kernel"]).sum(axis=0)
        z = z + self.weights[f"{path}/conv_1d/bias"]
        gates = [_sigmoid(self._blocks(z, f"{path}/rg_lru/{x}_gate")) for x in ("input", "a")]
        softplus = np.log1p(np.exp(self.weights[f"{path}/rg_lru/a_param"]))
        log_a = -8 * gates[1] * softplus
        multiplier = 1.0 if self.position == 0 else np.sqrt(-np.expm1(2 * log_a))
        kept = 0.0 if self.position == 0 else np.exp(log_a) * state["recurrence"]
        state["recurrence"] = kept + multiplier * gates[0] * z
        return self._linear(y * state["recurrence"], f"{path}/linear_out")

    def _blocks(self, x, path):
        kernel, bias = (self.weights[f"{path}/{name}"] for name in ("kernel", "bias"))
        blocks = x.reshape(len(kernel), 1, -1) @ kernel
        return blocks.reshape(-1) + bias.reshape(-1)

    def _attention(self, x, i):
        path, state, config = f"block_{i}/attention_block", self.layers[i], self.config
        window, size = config.sliding_window_size, config.key_size
        query, key, value = (
            self._linear(x, f"{path}/{name}").reshape(-1, size)
            for name in ("query", "key", "value")
        )
        query, key = self._rotated(query), self._rotated(key)
        # The W tokens before, each at its position modulo W, and the token itself.
        slots = np.arange(max(0, self.position - window), self.position) % window
        keys = np.concatenate([state["keys"][slots], key[None]])
        values = np.concatenate([state["values"][slots], value[None]])
        for name, new in (("keys", key), ("values", value)):
            state[name][self.position % window] = new
        heads = []
        for head, q in enumerate(query):
            group = head * config.num_key_value_heads // config.num_query_heads
            scores = keys[:, group] @ q / math.sqrt(size)
            shares = np.exp(scores - scores.max())
            heads.append(shares / shares.sum() @ values[:, group])
        return self._linear(np.concatenate(heads), f"{path}/attention_output")

    def _rotated(self, x):
        half = self.config.rotated_size // 2
        # In float64 the product is right to 1e-10 rad at a million tokens.
        angle = self.position * self.config.rope_max_wavelength ** (-np.arange(half) / half)
        first, second, rest = np.split(x, [half, 2 * half], axis=-1)
        cos, sin = np.cos(angle), np.sin(angle)
        return np.hstack([first * cos - second * sin, second * cos + first * sin, rest])


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
