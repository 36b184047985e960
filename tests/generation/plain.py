"""Generation as its definition reads: everything recomputed for each token, one row at a time."""

import numpy as np
from keras import ops

WINDOW = 5


def lively_model(seed=1, gain=2.5, **overrides):
    """A tiny model without a preprocessor; with this gain its greedy text is no mere repetition.

    Such a gain multiplies errors of rounding: logits come up to 3e-5 from those in float64, by
    whichever path they are computed. With a gain of 1 they come to 2e-6.
    """
    import keras_rgemma

    sizes = {
        "vocabulary_size": 61,
        "num_layers": 3,
        "block_types": ("recurrent", "attention"),
        "hidden_dim": 16,
        "intermediate_dim": 24,
        "num_query_heads": 2,
        "lru_dim": 24,
        "sliding_window_size": WINDOW,
        "scale_embeddings": False,
    }
    lm = keras_rgemma.RGemmaCausalLM(keras_rgemma.RGemmaBackbone(**{**sizes, **overrides}))
    random = np.random.RandomState(seed)
    for variable in lm.weights:
        if variable.path.endswith("kernel"):
            variable.assign(random.normal(0, gain / variable.shape[-2] ** 0.5, variable.shape))
        elif variable.path.endswith(("bias", "scale")):
            variable.assign(random.normal(0, 0.3, variable.shape))
        elif variable.path.endswith("a_param"):
            variable.assign(random.uniform(-5, -2, variable.shape))
    return lm


# One compiled shape for all lengths: right pads change nothing, which the laws test.
ROOM = 48


def last_outputs(lm, rows):
    """Float64 logits [N, V] and hidden states [N, T, D] of token lists, with no state."""
    token_ids = np.zeros((len(rows), ROOM), "int32")
    mask = np.zeros((len(rows), ROOM), "int32")
    for i, row in enumerate(rows):
        token_ids[i, : len(row)], mask[i, : len(row)] = row, 1
    inputs = {"token_ids": token_ids, "padding_mask": mask}
    hidden = lm.backbone.predict_on_batch(inputs)
    last = np.stack([hidden[i, len(row) - 1] for i, row in enumerate(rows)])
    logits = ops.convert_to_numpy(lm.compute_logits(ops.convert_to_tensor(last)))
    return logits.astype("float64"), hidden.astype("float64")


def log_softmax(logits):
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def greedy(lm, prompt, count, stops=()):
    """The new tokens, the stop token included."""
    row = list(prompt)
    for _ in range(count):
        logits, _ = last_outputs(lm, [row])
        row.append(int(logits[0].argmax()))
        if row[-1] in stops:
            break
    return row[len(prompt) :]


def beam(lm, prompt, count, num_beams, stops=()):
    """The new tokens of the best beam. A beam that has ended keeps its score and its place."""
    beams = [(0.0, list(prompt), False)]
    for _ in range(count):
        if all(ended for _, _, ended in beams):
            break
        logits, _ = last_outputs(lm, [row for _, row, _ in beams])
        candidates = []
        for (score, row, ended), scores in zip(beams, log_softmax(logits), strict=True):
            if ended:
                candidates.append((score, row, True))
                continue
            for token in np.argsort(-scores)[:num_beams]:
                candidates.append((score + scores[token], [*row, int(token)], token in stops))
        beams = sorted(candidates, key=lambda candidate: -candidate[0])[:num_beams]
    return beams[0][1][len(prompt) :]


def contrastive(lm, prompt, count, k, alpha, stops=()):
    """Su et al., arXiv 2202.06417, equation 5: likely, but unlike what was said before."""
    row = list(prompt)
    for _ in range(count):
        logits, hidden = last_outputs(lm, [row])
        probabilities = np.exp(log_softmax(logits))[0]
        candidates = np.argsort(-probabilities)[:k]
        _, ahead = last_outputs(lm, [[*row, int(token)] for token in candidates])
        past, new = hidden[0, : len(row)], ahead[:, len(row)]
        norms = np.linalg.norm(past, axis=-1)[:, None] * np.linalg.norm(new, axis=-1)
        similarity = (past @ new.T / norms).max(axis=0)
        scores = (1 - alpha) * probabilities[candidates] - alpha * similarity
        row.append(int(candidates[scores.argmax()]))
        if row[-1] in stops:
            break
    return row[len(prompt) :]
