"""Does one job of `verify` in a process of its own, with `python -m`.

Then the memory of one model is free before the next one is loaded, and each backend has a process.
"""

import dataclasses
import importlib
import importlib.metadata
import json
import pathlib
import pickle
import platform
import sys
from types import ModuleType

import keras
import sentencepiece

from keras_rgemma import __version__
from keras_rgemma.backend import backend_module
from keras_rgemma.checkpoints.deepmind import CONFIG
from keras_rgemma.checkpoints.folder import Checkpoint, open_checkpoint, read_tokenizer
from keras_rgemma.config import RGemmaConfig
from keras_rgemma.evaluation.verify import memory, ours
from keras_rgemma.evaluation.verify.job import Job
from keras_rgemma.evaluation.verify.observation import Observation, write
from keras_rgemma.evaluation.verify.texts import Material
from keras_rgemma.model.conversion import convert

_UNTOLD = ("sliding_window_size", "final_logit_soft_cap", "scale_embeddings")


def run(job: Job, backend: str | None = None) -> Observation | None:
    """Does a job in this process.

    Args:
        job: `Job`.
        backend: unused here; `processes.run` starts a process with it.

    Returns:
        `Observation`; None after a conversion.

    Raises:
        RuntimeError: there is too little memory.
        ValueError: a checkpoint is broken, or the reference has no equivalent for a setting.
    """
    del backend
    if job.kind == "convert":
        convert(job.folder, job.target, job.format)
        return None
    device = _device(job)
    if job.needed is not None:
        memory.check(job.needed, job.copies, device, job.dtype)
    if job.kind == "ours":
        arrays = ours.observe(job.folder, job.dtype, job.material, job.new_tokens)
        packages = ("keras", "keras-hub", device.PACKAGE)
        versions = [f"keras-rgemma {__version__}"]
    else:
        adapter = importlib.import_module(f"{__package__}.{job.kind}")
        checkpoint = _with_settings(open_checkpoint(job.folder), job.config)
        arrays = adapter.observe(checkpoint, job.dtype, job.material, job.new_tokens)
        arrays |= _tokens(job.folder, job.material)
        packages, versions = adapter.PACKAGES, []
    versions += [f"{name} {importlib.metadata.version(name)}" for name in packages]
    about = {
        "versions": ", ".join(versions),
        "device": device.device_name(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
    }
    return Observation(arrays, about)


def _device(job: Job) -> ModuleType:
    """Returns the module of this folder that describes the device of a job."""
    if job.backend is None:
        return backend_module(__package__)
    return importlib.import_module(f"{__package__}.{job.backend}")


def _with_settings(checkpoint: Checkpoint, config: RGemmaConfig) -> Checkpoint:
    """Adds the settings that DeepMind's formats do not tell, from the model that is verified."""
    source = checkpoint.open_weights()
    place = pathlib.Path(checkpoint.path)
    has_config = any((x / CONFIG).is_file() for x in (place, place.parent))
    if source.format == "huggingface" or has_config:
        return checkpoint
    settings = {name: getattr(config, name) for name in _UNTOLD}
    told = dataclasses.replace(checkpoint.config, **settings)
    return dataclasses.replace(checkpoint, config=told)


def _tokens(folder: str, material: Material) -> dict:
    """Tokenizes the texts with SentencePiece alone, as DeepMind's sampler does.

    Not where transformers' tokenizer.json counts, into which a fine-tune writes its own tokens.
    """
    file = (read_tokenizer(folder) or {}).get("proto")
    if not isinstance(file, str):
        return {}
    processor = sentencepiece.SentencePieceProcessor(model_file=file)
    ids = map(processor.EncodeAsIds, material.texts)
    return {f"tokens/{k}": keras.ops.convert_to_numpy(x).astype("int32") for k, x in enumerate(ids)}


def main() -> None:
    """Reads a job from standard input, and writes the observation or the error into a file."""
    job, folder = pickle.load(sys.stdin.buffer)
    folder = pathlib.Path(folder)
    try:
        if job.kind != "convert":
            _device(job).full_precision()
        observation = run(job)
    except (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError) as error:
        kind = next(
            cls.__name__
            for cls in (ValueError, TypeError, OSError, ImportError, RuntimeError, MemoryError)
            if isinstance(error, cls)
        )
        words = json.dumps({"kind": kind, "error": str(error)})
        (folder / "error.json").write_text(words, encoding="utf-8")
        return
    if observation is not None:
        write(folder / "observation.npz", observation)


if __name__ == "__main__":
    main()
