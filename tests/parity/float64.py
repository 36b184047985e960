"""The model as its definition reads, in float64 with NumPy, on one row."""

import math

import keras
import numpy as np

import tiny


class Reference:
    """Goes on from the state of a model, exactly.

    Args:
        lm: `RGemmaCausalLM`.
        state: `RGemmaState` of one row; None at the beginning of a text.
    """

    def __init__(self, lm, state=None):
        self.config = lm.backbone.config
        self.weights = {
            weight.path: tiny.numpy(weight).astype("float64") for weight in lm.backbone.weights
        }
        arrays = keras.tree.map_structure(
            lambda x: np.array(tiny.numpy(x)[0], "float64"),
            lm.initial_state(1) if state is None else state.consumed,
        )
        self.position = int(arrays.num_tokens)
        self.layers = [layer._asdict() for layer in arrays.layers]

    def logits(self, token_ids):
        """The logits [T, V] after each of T more tokens."""
        config, embeddings = self.config, self.weights["token_embedding/embeddings"]
        x = embeddings[token_ids] * config.embedding_scale
        for i, kind in enumerate(config.layer_types):
            mix = {"recurrent": self._recurrent, "attention": self._attention}[kind]
            x = x + mix(self._norm(x, f"block_{i}/temporal_pre_norm"), i)
            x = x + self._mlp(self._norm(x, f"block_{i}/channel_pre_norm"), f"block_{i}/mlp_block")
        self.position += len(x)
        raw = self._norm(x, "final_norm") @ embeddings.T
        cap = config.final_logit_soft_cap
        return raw if cap is None else cap * np.tanh(raw / cap)

    def _norm(self, x, path):
        scale = 1 + self.weights[f"{path}/scale"]
        mean = np.mean(x * x, axis=-1, keepdims=True)
        return x / np.sqrt(mean + self.config.layer_norm_epsilon) * scale

    def _linear(self, x, path):
        return x @ self.weights[f"{path}/kernel"] + self.weights.get(f"{path}/bias", 0.0)

    def _mlp(self, x, path):
        gate = _gelu(self._linear(x, f"{path}/ffw_gate"))
        return self._linear(gate * self._linear(x, f"{path}/ffw_up"), f"{path}/ffw_down")

    def _recurrent(self, x, i):
        path, state = f"block_{i}/recurrent_block", self.layers[i]
        y = _gelu(self._linear(x, f"{path}/linear_y"))
        inputs = np.vstack([state["conv"], self._linear(x, f"{path}/linear_x")])
        state["conv"] = inputs[len(x) :]
        taps = self.weights[f"{path}/conv_1d/kernel"]
        z = sum(tap * inputs[j : j + len(x)] for j, tap in enumerate(taps))
        z = z + self.weights[f"{path}/conv_1d/bias"]
        gates = [_sigmoid(self._blocks(z, f"{path}/rg_lru/{x}_gate")) for x in ("input", "a")]
        softplus = np.log1p(np.exp(self.weights[f"{path}/rg_lru/a_param"]))
        log_a = -8 * gates[1] * softplus
        decay, multiplier = np.exp(log_a), np.sqrt(-np.expm1(2 * log_a))
        if self.position == 0:
            decay[0], multiplier[0] = 0.0, 1.0
        hidden = multiplier * gates[0] * z
        for t, kept in enumerate(decay):
            state["recurrence"] = hidden[t] = hidden[t] + kept * state["recurrence"]
        return self._linear(y * hidden, f"{path}/linear_out")

    def _blocks(self, x, path):
        kernel, bias = (self.weights[f"{path}/{name}"] for name in ("kernel", "bias"))
        blocks = x.reshape(len(x), len(kernel), -1).swapaxes(0, 1) @ kernel
        return blocks.swapaxes(0, 1).reshape(x.shape) + bias.reshape(-1)

    def _attention(self, x, i):
        path, state, config = f"block_{i}/attention_block", self.layers[i], self.config
        window, size, count = config.sliding_window_size, config.key_size, len(x)
        query, key, value = (
            self._linear(x, f"{path}/{name}").reshape(count, -1, size)
            for name in ("query", "key", "value")
        )
        positions = self.position + np.arange(count)
        query, key = self._rotated(query, positions), self._rotated(key, positions)
        # The W tokens before, each at its position modulo W, and the tokens themselves.
        before = np.arange(max(0, self.position - window), self.position)
        keys = np.concatenate([state["keys"][before % window], key])
        values = np.concatenate([state["values"][before % window], value])
        for name, new in (("keys", key), ("values", value)):
            state[name][positions[-window:] % window] = new[-window:]
        distances = positions[:, None] - np.concatenate([before, positions])
        is_seen = (distances >= 0) & (distances <= window)
        heads = []
        for head in range(config.num_query_heads):
            group = head * config.num_key_value_heads // config.num_query_heads
            scores = query[:, head] @ keys[:, group].T / math.sqrt(size)
            scores = np.where(is_seen, scores, -np.inf)
            shares = np.exp(scores - scores.max(axis=-1, keepdims=True))
            heads.append(shares / shares.sum(axis=-1, keepdims=True) @ values[:, group])
        return self._linear(np.concatenate(heads, axis=-1), f"{path}/attention_output")

    def _rotated(self, x, positions):
        half = self.config.rotated_size // 2
        # In float64 the product is right to 1e-10 rad at a million tokens.
        angles = positions[:, None, None] * self.config.rope_max_wavelength ** (
            -np.arange(half) / half
        )
        first, second, rest = np.split(x, [half, 2 * half], axis=-1)
        cos, sin = np.cos(angles), np.sin(angles)
        turned = first * cos - second * sin, second * cos + first * sin
        return np.concatenate([*turned, rest], axis=-1)


def _gelu(x):
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def _sigmoid(x):
    return 1 / (1 + np.exp(-x))
