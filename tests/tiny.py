"""Tiny models and a tokenizer that are made in seconds and need no preset."""

import functools
import io

import keras
import keras_hub
import numpy as np
import sentencepiece
from keras import ops

import keras_rgemma

SENTENCES = (
    "The quick brown fox jumps over the lazy dog.",
    "A lighthouse is a tower that shows ships the way at night.",
    "What is a river? A river is a large stream of water that flows to the sea.",
    "She sells sea shells by the sea shore; the shells she sells are sea shells.",
    "In the beginning was the word, and the word was with the people of the town.",
    "Call me when the train from the north arrives at the station in the morning.",
    "How much wood would a woodchuck chuck if a woodchuck could chuck wood?",
    "Water freezes at 0 degrees and boils at 100 degrees, or 32 and 212 in old units.",
    'Peter said: "I have never been there (nor do I want to go), but you should!"',
)
TURNS = ("<start_of_turn>", "<end_of_turn>")
CONTROL_IDS = {"pad": 0, "eos": 1, "bos": 2, "unk": 3}


@functools.cache
def proto(end_of_turn=True, bos=True, further_tokens=()):
    """The bytes of a SentencePiece model with Gemma's control tokens and settings.

    Args:
        end_of_turn: bool, whether the vocabulary has <end_of_turn>.
        bos: bool, whether the start token is spelled <bos>.
        further_tokens: tuple of str, tokens that are recognised in text beside those of turns.
    """
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        model_type="bpe",
        vocab_size=400,
        character_coverage=1.0,
        normalization_rule_name="identity",
        add_dummy_prefix=False,
        remove_extra_whitespaces=False,
        byte_fallback=True,
        **{f"{name}_id": id for name, id in CONTROL_IDS.items()},
        **{f"{name}_piece": f"<{name}>" for name in CONTROL_IDS if bos or name != "bos"},
        user_defined_symbols=[*(TURNS if end_of_turn else TURNS[:1]), *further_tokens],
        num_threads=1,
        minloglevel=2,
    )
    return model.getvalue()


def tokenizer(**kwargs):
    """An `RGemmaTokenizer` with the tiny vocabulary."""
    return keras_rgemma.RGemmaTokenizer(proto=proto(), **kwargs)


def preprocessor(sequence_length=16, **kwargs):
    """An `RGemmaCausalLMPreprocessor` with the tiny vocabulary."""
    return keras_rgemma.RGemmaCausalLMPreprocessor(
        tokenizer(), sequence_length=sequence_length, **kwargs
    )


class Scripted(keras_hub.samplers.Sampler):
    """A sampler that writes given rows of tokens, whatever the model says.

    Args:
        rows: B lists of N token ids.
    """

    def __init__(self, rows):
        super().__init__()
        self.rows = np.array(rows, "int32")
        self.count = keras.Variable(0, dtype="int32", trainable=False)

    @property
    def variables(self):
        return [*super().variables, self.count]

    def get_next_token(self, probabilities):
        tokens = ops.take(ops.convert_to_tensor(self.rows), self.count.value, axis=1)
        self.count.assign(self.count + 1)
        return tokens


SIZES = {
    "vocabulary_size": 400,
    "num_layers": 2,
    "block_types": ("recurrent", "attention"),
    "hidden_dim": 16,
    "intermediate_dim": 40,
    "num_query_heads": 2,
    "lru_dim": 24,
    "sliding_window_size": 5,
}
# The paths of the linear layers of its blocks.
_TEMPORAL = {
    "recurrent_block": ("linear_x", "linear_y", "linear_out", "rg_lru/input_gate", "rg_lru/a_gate"),
    "attention_block": ("query", "key", "value", "attention_output"),
}
_MLP = ("ffw_gate", "ffw_up", "ffw_down")
LINEAR = {
    f"block_{i}/{part}/{name}"
    for i, kind in enumerate(("recurrent_block", "attention_block"))
    for part, names in ((kind, _TEMPORAL[kind]), ("mlp_block", _MLP))
    for name in names
}


def backbone(**overrides):
    """A recurrent layer and one with attention, every dimension another number."""
    return keras_rgemma.RGemmaBackbone(**{**SIZES, **overrides})


def causal_lm(preprocessor="default", sequence_length=16, **overrides):
    """An `RGemmaCausalLM`, with a preprocessor unless it is given as None.

    Args:
        preprocessor: the preprocessor of the model, or "default" for the tiny one.
        sequence_length: int, of the tiny preprocessor.
        **overrides: of `backbone`.
    """
    if isinstance(preprocessor, str):
        preprocessor = globals()["preprocessor"](sequence_length)
    return keras_rgemma.RGemmaCausalLM(backbone(**overrides), preprocessor)


def arrays(rows=2, length=7, seed=1):
    """A dict of random token ids and a padding mask; the last row ends with two pads."""
    ids = np.random.RandomState(seed).randint(4, SIZES["vocabulary_size"], (rows, length))
    mask = np.ones((rows, length), "int32")
    mask[-1, -2:] = 0
    return {"token_ids": (ids * mask).astype("int32"), "padding_mask": mask}


def numpy(x):
    """Any tensor as a numpy array, half precision as float32."""
    x = keras.ops.convert_to_tensor(x)
    if keras.backend.is_float_dtype(x.dtype):
        x = keras.ops.cast(x, "float32")
    return keras.ops.convert_to_numpy(x)


def randomize(model, seed=2):
    """Moves every weight, so that one that is lost on the way shows; zeros would not."""
    random = np.random.RandomState(seed)
    for weight in model.weights:
        value = numpy(weight)
        weight.assign(value + random.normal(scale=0.1, size=value.shape).astype("float32"))
    return model


def wordy(model, seed=7):
    """Lets a model with a preprocessor write words in no pattern, seldom bytes; returns it."""
    random = np.random.RandomState(seed)
    for weight in model.weights:
        if weight.path.endswith("kernel"):
            weight.assign(random.normal(0, 2.5 / weight.shape[-2] ** 0.5, weight.shape))
    embeddings = model.backbone.token_embedding.embeddings
    pieces = map(model.preprocessor.tokenizer.id_to_token, range(embeddings.shape[0]))
    is_word = [[not piece.startswith("<0x")] for piece in pieces]
    embeddings.assign(random.normal(0, 0.5, embeddings.shape) * is_word)
    return model


def calls_of(layers):
    """A list that grows by a layer with each call of one of them."""
    calls = []
    for layer in layers:

        def listed(*args, layer=layer, call=layer.call, **kwargs):
            calls.append(layer)
            return call(*args, **kwargs)

        layer.call = listed
    return calls
