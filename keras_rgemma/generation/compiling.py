"""Compiles functions of a model and arrays, and notices when they have to be compiled again."""

import functools
import operator
from collections.abc import Callable
from typing import Any

import keras

from keras_rgemma.backend import backend_module
from keras_rgemma.generation.model import Sampler


class Programs:
    """Compiles functions of a model and arrays, each once a shape.

    Args:
        model: `keras.Model`. Its `jit_compile` says whether TensorFlow uses XLA, its `run_eagerly`
            whether nothing is compiled, for debugging.
        sampler: `keras_hub.samplers.Sampler` that the functions call, or None.
    """

    def __init__(self, model: Any, sampler: Sampler | None = None) -> None:
        self.model = model
        self.sampler = sampler
        self._settings = _read_settings(model, sampler)
        self._sampler_config = sampler and sampler.get_config()
        self._compiled = {}
        self._programs = []

    def are_for(self, model: Any, sampler: Sampler | None = None) -> bool:
        """Returns whether the programs were made for the current weights and settings."""
        settings = _read_settings(model, sampler)
        if sampler and sampler.get_config() != self._sampler_config:
            return False
        return len(settings) == len(self._settings) and all(
            map(operator.is_, settings, self._settings)
        )

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Returns a function of the model and of arrays as a program of the arrays."""
        if function not in self._compiled:
            self._compiled[function] = self._compile(function)
        return self._compiled[function]

    @property
    def num_compiled(self) -> int:
        """Returns the number of compiled programs, int; a function has one for each shape."""
        return sum(program.count() for program in self._programs)

    def _compile(
        self, function: Callable[..., Any], sampler: Sampler | None = None
    ) -> Callable[..., Any]:
        backend = backend_module("keras_rgemma.generation")
        if self.model.run_eagerly and keras.config.backend() != "torch":
            return functools.partial(function, self.model)
        program = backend.compile_program(function, self.model, sampler, self.model.jit_compile)
        self._programs.append(program)
        return program


def _read_settings(model: Any, sampler: Sampler | None) -> tuple[Any, ...]:
    """Lists the objects that programs depend on, a tuple."""
    # Objects and not their ids: the id of an object that is gone is used again.
    settings = (model.dtype_policy, model.run_eagerly, model.jit_compile)
    return (*model.compile_key(), sampler, *settings)
