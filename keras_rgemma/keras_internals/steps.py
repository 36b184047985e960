"""Keeps the weights of a model when a step of `fit`, `evaluate` or `predict` fails.

Keras' own step updates the metrics after the weights. Where it runs op by op, as on PyTorch, the
update of the weights waits here for its end, so that a metric can raise before it.

On JAX, Keras takes the values out of the variables while it loops over batches, and each step gives
its input up to its output. Keras 3.15 loses the values if an exception comes between.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import Any, Concatenate, ParamSpec, TypeVar

import keras
from keras import ops

from keras_rgemma.interrupts import held_interrupts, no_lost_interrupts
from keras_rgemma.keras_internals.distribution import dividing_rows
from keras_rgemma.keras_internals.parameters import no_gradients

_M = TypeVar("_M")
_P = ParamSpec("_P")
_R = TypeVar("_R")

_PARTS = (
    "trainable_variables",
    "non_trainable_variables",
    "optimizer_variables",
    "metrics_variables",
)
# The parts of the state of a step, by the number of these parts.
_PARTS_OF = {4: _PARTS, 3: (*_PARTS[:2], _PARTS[3]), 2: _PARTS[:2]}


def recovers(method: Callable[Concatenate[_M, _P], _R]) -> Callable[Concatenate[_M, _P], _R]:
    """Decorates a method of a model with `RecoverableSteps` that runs a loop of Keras.

    If the method raises, the model gets its values after the last whole step. Ctrl-C that Python
    would forget raises at the end of a step.

    Raises:
        RuntimeError: the values are gone with the memory of the device.
    """

    @functools.wraps(method)
    def recovering(self: _M, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        try:
            with no_lost_interrupts(_forgets):
                return method(self, *args, **kwargs)
        except BaseException as error:
            if keras.config.backend() == "jax":
                with held_interrupts():
                    _recover(self, error)
            raise

    return recovering


def _forgets(frame: FrameType) -> bool:
    """Returns whether a frame is of Keras' function of logs, which forgets all that is raised."""
    is_of_logs = frame.f_code.co_name == "pythonify_logs"
    return is_of_logs and frame.f_globals.get("__name__", "").startswith("keras.")


class RecoverableSteps:
    """Mixin for `keras.Model` that runs whole steps; list it before the Keras class.

    Ctrl-C is held until the result of a step is stored. A step that raises changes nothing.
    """

    train_function: Any
    test_function: Any
    predict_function: Any

    def make_train_function(self, force: bool = False) -> None:
        super().make_train_function(force)
        self.train_function = _whole_steps(self, self.train_function)

    def make_test_function(self, force: bool = False) -> None:
        super().make_test_function(force)
        self.test_function = _whole_steps(self, self.test_function)

    def make_predict_function(self, force: bool = False) -> None:
        super().make_predict_function(force)
        self.predict_function = _whole_steps(self, self.predict_function)

    def train_step(self, *args: Any) -> Any:
        is_jax = keras.config.backend() == "jax"
        if is_jax or not _runs_op_by_op(self) or self.optimizer is None:
            return super().train_step(*args)
        with _update_at_the_end(self.optimizer):
            return super().train_step(*args)

    @recovers
    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return super().train_on_batch(*args, **kwargs)

    @recovers
    def test_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return super().test_on_batch(*args, **kwargs)

    @recovers
    def predict_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        return super().predict_on_batch(*args, **kwargs)

    def _symbolic_build(self, *args: Any, **kwargs: Any) -> None:
        with dividing_rows():  # Keras reads a batch here when the model has made no step
            return super()._symbolic_build(*args, **kwargs)

    def _get_jax_state(self, purge_model_variables: bool = False, **parts: Any) -> tuple[Any, ...]:
        with held_interrupts():
            for variable in self.variables:  # each for itself: all at once would need twice as much
                if hasattr(variable, "turn_back"):
                    variable.turn_back()
            state = super()._get_jax_state(purge_model_variables=purge_model_variables, **parts)
            if purge_model_variables:
                _keep(self, state)
        return state


def _runs_op_by_op(model: Any) -> bool:
    """Returns whether a step of a model changes variables one operation after the other."""
    backend = keras.config.backend()
    return model.run_eagerly or (backend == "torch" and not model.jit_compile)


@contextlib.contextmanager
def _update_at_the_end(optimizer: keras.Optimizer) -> Iterator[None]:
    """Lets an optimizer change weights at the end of a block, or not at all if that raises."""
    updates, own = [], vars(optimizer).get("apply")
    apply = optimizer.apply
    vars(optimizer)["apply"] = lambda *args, **kwargs: updates.append((args, kwargs))
    try:
        yield
    finally:
        if own is None:
            del vars(optimizer)["apply"]
        else:
            vars(optimizer)["apply"] = own
    for args, kwargs in updates:
        with no_gradients():
            apply(*args, **kwargs)


def _keep(model: Any, state: Sequence[Any]) -> None:
    """Stores the state of a step where `jax_state_sync` finds it."""
    model._jax_state = dict(zip(_PARTS_OF[len(state)], state, strict=True))
    model._jax_state_synced = False


def _whole_steps(model: Any, function: Callable[..., Any]) -> _WholeSteps:
    """Wraps a train, test or predict function of Keras, unless it is wrapped already."""
    if isinstance(function, _WholeSteps):
        return function
    kinds = {"jax": _WholeJaxSteps, "tensorflow": _WholeTensorFlowSteps, "torch": _WholeSteps}
    return kinds[keras.config.backend()](model, function)


class _WholeSteps:
    """Runs steps that change variables in place."""

    model: Any
    function: Callable[..., Any]

    def __init__(self, model: Any, function: Callable[..., Any]) -> None:
        self.model, self.function = model, function

    def __call__(self, data: Any) -> Any:
        variables = self._changed_before_the_end()
        before = [ops.copy(variable.value) for variable in variables]
        with held_interrupts():
            try:
                return self.function(data)
            except BaseException:
                for variable, value in zip(variables, before, strict=True):
                    variable.assign(value)
                raise

    def _changed_before_the_end(self) -> list[keras.Variable]:
        """Lists the variables that a step may have changed when it fails."""
        return list(self.model.metrics_variables)


class _WholeTensorFlowSteps(_WholeSteps):
    """Runs the steps of an execution after all its data are read.

    TensorFlow reads the next batch beside a step, and an error there stops the step in its middle.
    """

    def __call__(self, iterator: Any) -> Any:
        count = self.model.steps_per_execution
        if count == 1 or isinstance(iterator, list):  # a list comes from `predict`
            return super().__call__(iterator)
        batches = list(itertools.islice(iterator, count))
        if not batches:
            raise StopIteration
        return super().__call__(iter(batches))

    def _changed_before_the_end(self) -> list[keras.Variable]:
        metrics = super()._changed_before_the_end()
        if self.model.run_eagerly:
            return metrics
        # A graph counts a step even at the end of a dataset whose length is not known.
        optimizer = getattr(self.model, "optimizer", None)
        return metrics + [x for x in getattr(optimizer, "variables", ()) if len(x.shape) == 0]


class _WholeJaxSteps(_WholeSteps):
    """Runs steps of a state that goes in and comes out."""

    def __call__(self, state: Sequence[Any], iterator: Iterator[Any]) -> tuple[Any, Sequence[Any]]:
        _keep(self.model, state)
        # All data of an execution come before it: an error in them finds the state intact.
        with dividing_rows():
            batches = list(itertools.islice(iterator, self.model.steps_per_execution))
        is_predict = len(state) == 2  # its outputs are those of all steps
        runs = [batches] if is_predict or not batches else [[batch] for batch in batches]
        for run in runs:
            with held_interrupts():
                try:
                    outputs, state = self.function(state, iter(run))
                except BaseException as error:
                    self._check_alive(state, error)
                    raise
                _keep(self.model, state)
        return outputs, state

    def _check_alive(self, state: Sequence[Any], error: BaseException) -> None:
        if any(array.is_deleted() for array in keras.tree.flatten(state)):
            self.model._jax_state = None  # Keras would assign what is deleted
            raise _WeightsAreGone(error) from error


def _recover(model: Any, error: BaseException) -> None:
    """Gives variables of a model their values; see `recovers`."""
    model.jax_state_sync()
    model._jax_state = None
    try:
        for variable in model.variables:
            variable.value.block_until_ready()  # raises what the device raised, or for no value
    except Exception:
        if isinstance(error, _WeightsAreGone):
            return
        raise _WeightsAreGone(error) from error


class _WeightsAreGone(RuntimeError):
    def __init__(self, error: BaseException) -> None:
        super().__init__(
            "The weights are gone: on JAX a step takes over their memory, and this one failed on "
            f"the device ({type(error).__name__}: {error}). Make the model anew and load its last "
            "checkpoint with `load_weights`, or go on with `fit` and the same "
            "`keras.callbacks.BackupAndRestore`. If memory is short, take a smaller `batch_size` "
            "or `sequence_length`, or `gradient_checkpointing=True`."
        )
