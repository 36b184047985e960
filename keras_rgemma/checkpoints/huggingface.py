"""Hugging Face folders: `config.json` and one or more safetensors files."""

import json
import math
import pathlib

from keras_rgemma.checkpoints.names import LM_HEAD
from keras_rgemma.config import RGemmaConfig

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
ACTIVATIONS = {
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "gelu": "gelu",
    "silu": "silu",
    "swish": "silu",
    "relu": "relu",
}
# Their name of each field that is the same in both.
FIELDS = {
    "vocabulary_size": "vocab_size",
    "num_layers": "num_hidden_layers",
    "hidden_dim": "hidden_size",
    "num_query_heads": "num_attention_heads",
    "num_key_value_heads": "num_key_value_heads",
    "sliding_window_size": "attention_window_size",
    "conv_width": "conv1d_width",
    "layer_norm_epsilon": "rms_norm_eps",
}


def is_config(config):
    """Whether the contents of a `config.json` are those of such a folder."""
    return "model_type" in config


def config_from(theirs):
    """The architecture that a Hugging Face config describes.

    Args:
        theirs: dict, the contents of `config.json`.

    Returns:
        `RGemmaConfig`.

    Raises:
        ValueError: another kind of model, a field that is missing, or a setting that this package
            has no equivalent for.
    """
    if theirs.get("model_type") != "recurrent_gemma":
        raise ValueError(
            "`model_type` in config.json must be 'recurrent_gemma'. Received: "
            f"{theirs.get('model_type')!r}. Load other models with keras_hub."
        )
    block_types = theirs.get("block_types") or theirs.get("_block_types")
    wanted = (*FIELDS.values(), "intermediate_size", "hidden_activation")
    missing = [name for name in wanted if theirs.get(name) is None]
    missing += [] if block_types else ["block_types"]
    if missing:
        raise ValueError(f"config.json lacks {missing}, which the architecture depends on.")
    if theirs.get("attention_bias"):
        raise ValueError(
            "`attention_bias` in config.json is true, but RGemmaBackbone has no biases on queries, "
            "keys and values, as no published checkpoint has them. This model cannot be loaded."
        )
    if theirs["intermediate_size"] % 2:
        raise ValueError(
            "`intermediate_size` in config.json counts both branches of the MLP, so it must be "
            f"even. Received: {theirs['intermediate_size']}."
        )
    if theirs["hidden_activation"] not in ACTIVATIONS:
        raise ValueError(
            f"`hidden_activation` in config.json must be one of {list(ACTIVATIONS)}. Received: "
            f"{theirs['hidden_activation']!r}."
        )
    return RGemmaConfig(
        **{ours: theirs[name] for ours, name in FIELDS.items()},
        **_rope_from(theirs),
        intermediate_dim=theirs["intermediate_size"] // 2,
        lru_dim=theirs.get("lru_width"),
        block_types=tuple(block_types),
        final_logit_soft_cap=theirs.get("logits_soft_cap") or None,
        scale_embeddings=theirs.get("embeddings_scale_by_sqrt_dim", True),
        activation=ACTIVATIONS[theirs["hidden_activation"]],
    )


def _rope_from(theirs):
    """RoPE's settings, which newer versions of transformers keep in a dict of their own."""
    rope = {**theirs, **(theirs.get("rope_parameters") or {})}
    kind = rope.get("rope_type", "default")
    if kind != "default" or theirs.get("rope_scaling"):
        raise ValueError(
            "RGemmaBackbone has the default RoPE only. Received in config.json: rope_type="
            f"{kind!r}, rope_scaling={theirs.get('rope_scaling')!r}."
        )
    return {
        "rope_max_wavelength": rope.get("rope_theta", 10_000.0),
        "rope_fraction": rope.get("partial_rotary_factor", 0.5),
    }


class SafetensorsFolder:
    """The tensors of a folder, read one at a time.

    Attributes:
        format: str, which names of the table its tensors have.
        shapes: dict of a tensor's name to its shape, tuple of ints.
        copies: dict of a tensor that may be there to the one that it must repeat.

    Raises:
        ValueError: no weights, a broken or missing file, or an index that does not fit it.
    """

    format = "huggingface"

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.copies = {LM_HEAD: "model.embed_tokens.weight"}
        self.shapes, self._files, self._sizes = {}, {}, {}
        for file in self._listed_files():
            with self._opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no dict)
                    tensor = opened.get_slice(name)
                    self._check_listed(name, file)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self._files[name] = file
                    self._sizes[name] = _size_of(tensor.get_dtype(), self.shapes[name])
        absent = sorted(set(self._weight_map or ()) - set(self.shapes))
        if absent:
            raise ValueError(f"{INDEX} lists tensors that its files do not hold: {absent}.")

    def _listed_files(self):
        self._weight_map = None
        index = self.folder / INDEX
        if not index.exists():
            if not (self.folder / WEIGHTS).exists():
                raise ValueError(f"{str(self.folder)!r} holds neither {WEIGHTS} nor {INDEX}.")
            return [WEIGHTS]
        self._weight_map = read_json(index).get("weight_map")
        if not isinstance(self._weight_map, dict) or not self._weight_map:
            raise ValueError(f"{INDEX} has no `weight_map` of tensors to files.")
        files = sorted(set(self._weight_map.values()))
        for file in files:
            if not isinstance(file, str) or pathlib.PurePath(file).name != file or "\\" in file:
                raise ValueError(
                    f"{INDEX} names the file {file!r}, which is not a plain name in its own "
                    "folder. The checkpoint is broken or hostile; nothing was read from there."
                )
        return files

    def _check_listed(self, name, file):
        if name in self.shapes:
            raise ValueError(f"The tensor {name!r} is in {self._files[name]!r} and in {file!r}.")
        listed = file if self._weight_map is None else self._weight_map.get(name)
        if listed != file:
            raise ValueError(
                f"The tensor {name!r} is in {file!r}, but {INDEX} lists it in {listed!r}."
            )

    def _opened(self, file):
        import safetensors

        try:
            return safetensors.safe_open(self.folder / file, "np")
        except (OSError, safetensors.SafetensorError) as error:
            raise ValueError(
                f"{file!r} in {str(self.folder)!r} is missing or broken: {error}. Fetch it again."
            ) from error

    def num_bytes(self, name):
        """The bytes of a tensor in its file."""
        return self._sizes[name]

    def read(self, name, rows=None):
        """A tensor, or a slice of its first axis, as a NumPy array of its own memory.

        Only a format with copies has `rows`.
        """
        # Opened for each tensor, because pages of an open file count as memory of the process.
        with self._opened(self._files[name]) as opened:
            return opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]


def _size_of(dtype, shape):
    bits = {"F64": 64, "F32": 32, "F16": 16, "BF16": 16}.get(dtype)
    if bits is None:
        raise ValueError(
            f"Weights must be floating-point numbers of 16 to 64 bits. Received: {dtype}. "
            "Dequantize the checkpoint first."
        )
    return math.prod(shape) * bits // 8


def read_json(path):
    """The dict in a JSON file.

    Raises:
        ValueError: it cannot be read as one.
    """
    try:
        contents = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as JSON: {error}.") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object.")
    return contents
