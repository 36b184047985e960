"""Hugging Face folders: `config.json` and one or more safetensors files."""

import json
import pathlib

import ml_dtypes
import numpy as np

from keras_rgemma.checkpoints.names import LM_HEAD
from keras_rgemma.config import RGemmaConfig, check_count

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER = "tokenizer.model"
SHARD_BYTES = 2 << 30
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": ml_dtypes.bfloat16}
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
    if check_count("intermediate_size", theirs["intermediate_size"]) % 2:
        raise ValueError(
            "`intermediate_size` in config.json counts both branches of the MLP, so it must be "
            f"even. Received: {theirs['intermediate_size']}."
        )
    if str(theirs["hidden_activation"]) not in ACTIVATIONS:
        raise ValueError(
            f"`hidden_activation` in config.json must be one of {list(ACTIVATIONS)}. Received: "
            f"{theirs['hidden_activation']!r}."
        )
    return RGemmaConfig(
        **{ours: theirs[name] for ours, name in FIELDS.items()},
        **_rope_from(theirs),
        intermediate_dim=theirs["intermediate_size"] // 2,
        lru_dim=theirs.get("lru_width"),
        block_types=block_types,
        final_logit_soft_cap=theirs.get("logits_soft_cap", 30.0) or None,
        scale_embeddings=theirs.get("embeddings_scale_by_sqrt_dim", True),
        activation=ACTIVATIONS[theirs["hidden_activation"]],
    )


def _rope_from(theirs):
    """RoPE's settings, which newer versions of transformers keep in a dict of their own."""
    nested = theirs.get("rope_parameters") or {}
    if not isinstance(nested, dict):
        raise ValueError(f"`rope_parameters` in config.json must be a dict. Received: {nested!r}.")
    rope = {**theirs, **nested}
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


def config_of(config, dtype):
    """The contents of `config.json` for an architecture.

    Args:
        config: `RGemmaConfig`.
        dtype: str, of the weights.

    Returns:
        dict.

    Raises:
        ValueError: a setting that transformers' model has no equivalent for.
    """
    fixed = {
        "head_dim": (config.key_size, config.hidden_dim / config.num_query_heads),
        "scale_embeddings": (config.scale_embeddings, True),
    }
    for name, (value, theirs) in fixed.items():
        if value != theirs:
            raise ValueError(
                f"`{name}` is {value} here and always {theirs} in transformers' RecurrentGemma, so "
                "this model cannot be written for it."
            )
    if config.final_logit_soft_cap is None:
        raise ValueError(
            "`final_logit_soft_cap` is None, but transformers' RecurrentGemma always has a cap, so "
            "this model cannot be written for it."
        )
    return {
        "architectures": ["RecurrentGemmaForCausalLM"],
        "model_type": "recurrent_gemma",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()},
        "intermediate_size": 2 * config.intermediate_dim,
        "lru_width": config.recurrence_width,
        "block_types": list(config.block_types),
        "logits_soft_cap": config.final_logit_soft_cap,
        "embeddings_scale_by_sqrt_dim": True,
        # Several of theirs mean the same; the first is the usual one.
        "hidden_activation": next(
            x for x, ours in ACTIVATIONS.items() if ours == config.activation
        ),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": config.rope_max_wavelength,
            "partial_rotary_factor": config.rope_fraction,
        },
        # Versions before 5 read these two instead.
        "rope_theta": config.rope_max_wavelength,
        "partial_rotary_factor": config.rope_fraction,
        "attention_bias": False,
        "tie_word_embeddings": True,
        "dtype": dtype,
    }


def write(folder, tensors):
    """Writes weights, in files of at most 2 GiB each if tensors allow.

    Args:
        folder: `pathlib.Path`.
        tensors: iterable of pairs of a name and a NumPy array; no more of them are held at a time
            than fit in one file.
    """
    import safetensors.numpy

    files, shard, size, total = [], {}, 0, 0

    def flush():
        files.append((folder / f"{len(files) + 1}.partial", list(shard)))
        safetensors.numpy.save_file(shard, files[-1][0], metadata={"format": "pt"})
        shard.clear()

    for name, array in tensors:
        if shard and size + array.nbytes > SHARD_BYTES:
            flush()
            size = 0
        shard[name] = array
        size, total = size + array.nbytes, total + array.nbytes
    flush()
    if len(files) == 1:
        files[0][0].rename(folder / WEIGHTS)
        return
    weight_map = {}
    for number, (file, listed) in enumerate(files, start=1):
        final = f"model-{number:05d}-of-{len(files):05d}.safetensors"
        file.rename(folder / final)
        weight_map.update(dict.fromkeys(listed, final))
    write_json(folder / INDEX, {"metadata": {"total_size": total}, "weight_map": weight_map})


def write_tokenizer_config(folder, tokenizer):
    """Writes what transformers must know of a tokenizer beside its SentencePiece model.

    Args:
        folder: `pathlib.Path`.
        tokenizer: `RGemmaTokenizer`.
    """
    ends = [tokenizer.end_token_id, getattr(tokenizer, "end_token2_id", None)]
    write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "GemmaTokenizer",
            "add_bos_token": True,
            "add_eos_token": False,
            "clean_up_tokenization_spaces": False,
        },
    )
    write_json(
        folder / "generation_config.json",
        {
            "bos_token_id": tokenizer.start_token_id,
            "eos_token_id": [id for id in ends if id is not None],
            "pad_token_id": tokenizer.pad_token_id,
        },
    )


class SafetensorsFolder:
    """The tensors of a folder, read one at a time.

    Attributes:
        format: str, which names of the table its tensors have.
        shapes: dict of a tensor's name to its shape, tuple of ints.
        dtypes: dict of a tensor's name to its NumPy dtype.
        copies: dict of a tensor that may be there to the one that it must repeat.

    Raises:
        ValueError: no weights, a broken or missing file, or an index that does not fit it.
    """

    format = "huggingface"

    def __init__(self, folder):
        self.folder = pathlib.Path(folder)
        self.copies = {LM_HEAD: "model.embed_tokens.weight"}
        self.shapes, self.dtypes, self._files = {}, {}, {}
        for file in self._listed_files():
            with self._opened(file) as opened:
                for name in opened.keys():  # noqa: SIM118  (it is no dict)
                    tensor = opened.get_slice(name)
                    self._check_listed(name, file)
                    self.shapes[name] = tuple(tensor.get_shape())
                    self._files[name] = file
                    self.dtypes[name] = _dtype_of(tensor.get_dtype())
        absent = sorted(set(self._weight_map or ()) - set(self.shapes))
        if absent:
            raise ValueError(f"{INDEX} lists tensors that its files do not hold: {absent}.")

    def _listed_files(self):
        self._weight_map = None
        if (self.folder / WEIGHTS).exists():  # which transformers prefers, too
            return [WEIGHTS]
        if not (self.folder / INDEX).exists():
            raise ValueError(f"{str(self.folder)!r} holds neither {WEIGHTS} nor {INDEX}.")
        self._weight_map = read_json(self.folder / INDEX).get("weight_map")
        if not isinstance(self._weight_map, dict) or not self._weight_map:
            raise ValueError(f"{INDEX} has no `weight_map` of tensors to files.")
        for file in self._weight_map.values():
            is_name = isinstance(file, str) and pathlib.PurePath(file).name == file
            if not is_name or file in ("", "..") or "\\" in file:
                raise ValueError(
                    f"{INDEX} names the file {file!r}, which is not a plain name in its own "
                    "folder. The checkpoint is broken or hostile; nothing was read from there."
                )
        return sorted(set(self._weight_map.values()))

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

    def read(self, name, rows=None):
        """A tensor, or a slice of its first axis, as a NumPy array of its own memory.

        Only a format with copies has `rows`.
        """
        # Opened for each tensor, because pages of an open file count as memory of the process.
        with self._opened(self._files[name]) as opened:
            return opened.get_tensor(name) if rows is None else opened.get_slice(name)[rows]


def _dtype_of(dtype):
    """NumPy's dtype for the name that safetensors has for it."""
    found = DTYPES.get(dtype)
    if found is None:
        raise ValueError(
            f"Weights must be floating-point numbers of 16 to 64 bits. Received: {dtype}. "
            "Dequantize the checkpoint first."
        )
    return np.dtype(found)


def write_json(path, contents):
    """Writes a dict as a JSON file."""
    path.write_text(json.dumps(contents, indent=2) + "\n", encoding="utf-8")


def read_json(path):
    """The dict in a JSON file.

    Raises:
        ValueError: it cannot be read as one.
    """
    try:
        contents = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{str(path)!r} cannot be read as JSON: {error}.") from error
    if not isinstance(contents, dict):
        raise ValueError(f"{str(path)!r} must hold a JSON object.")
    return contents
