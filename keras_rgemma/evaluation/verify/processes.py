"""Runs the jobs of `verify`, each in a process of its own."""

import os
import pathlib
import pickle
import tempfile

from keras_rgemma.evaluation.verify.job import Job
from keras_rgemma.evaluation.verify.observation import Observation, read
from keras_rgemma.files import read_json
from keras_rgemma.workers import run_module

_WORKER = "keras_rgemma.evaluation.verify.worker"
_ERRORS = {x.__name__: x for x in (ValueError, TypeError, OSError, ImportError, MemoryError)}


class Processes:
    """Runs jobs, and keeps what they observed in a folder until the context ends.

    Example:
    ```python
    with Processes() as processes:
        observation = processes.run(job, "jax")
    ```
    """

    def __enter__(self) -> "Processes":
        self._folder = tempfile.TemporaryDirectory(prefix="keras_rgemma_verify_")
        self._count = 0
        return self

    def __exit__(self, *_: object) -> None:
        self._folder.cleanup()

    def new_folder(self) -> pathlib.Path:
        """Returns the path of a new folder that is deleted at the end."""
        self._count += 1
        folder = pathlib.Path(self._folder.name) / str(self._count)
        folder.mkdir()
        return folder

    def run(self, job: Job, backend: str) -> Observation | None:
        """Does a job in a process.

        Args:
            job: `Job`.
            backend: str, the backend of Keras in the process.

        Returns:
            `Observation`; None after a conversion.

        Raises:
            RuntimeError: the process ended without a result. See `worker.run`, too.
        """
        folder = self.new_folder()
        code = _wait(pickle.dumps((job, str(folder))), backend)
        if (folder / "error.json").is_file():
            found = read_json(folder / "error.json")
            raise _ERRORS.get(found["kind"], RuntimeError)(found["error"])
        if code:
            reason = f"ended with {code}; its last words are above"
            if code in (-9, 137):
                reason = (
                    "was killed, as for want of memory. Use a machine with more memory, or for "
                    "DeepMind's code on a CPU --new-tokens 0"
                )
            raise RuntimeError(f"The process of {job.kind} on {backend} {reason}.")
        file = folder / "observation.npz"
        return read(file) if file.is_file() else None


def _wait(job: bytes, backend: str) -> int:
    """Runs the worker to its end; returns its exit code."""
    env = {
        "TF_CPP_MIN_LOG_LEVEL": "2",
        # As much as a model needs, and not most of the device at once.
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
        **os.environ,
        "KERAS_BACKEND": backend,
    }
    return run_module(_WORKER, job, env).returncode
