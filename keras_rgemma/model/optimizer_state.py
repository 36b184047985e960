"""Loads the state of an optimizer from files that hold one, and is silent about the others."""

import contextvars
from collections.abc import Mapping
from typing import Any

import keras
from keras import ops

from keras_rgemma.checkpoints import orbax_training
from keras_rgemma.keras_internals.layers import variables_created_trainable
from keras_rgemma.keras_internals.parameters import normal_tensors
from keras_rgemma.keras_internals.saving import open_weights, saved_optimizer_size
from keras_rgemma.keras_internals.training import sync_weights
from keras_rgemma.types import StrPath

# Whether weights alone are being loaded, and no model with its optimizer.
_WEIGHTS_ALONE = contextvars.ContextVar("weights_alone", default=False)


class OptimizerState:
    """Mixin for `keras.Model` that skips its optimizer if a file holds nothing for it.

    An optimizer has no state until it is built, as its first step does: a model may be saved before
    it learns, or loaded only to write. Keras warns of both that the number of variables is another
    one. It still does where both the file and the optimizer have a state, of different sizes.

    List this before the Keras class.
    """

    optimizer: Any

    def load_weights(self, filepath: StrPath, skip_mismatch: bool = False, **kwargs: Any) -> None:
        """Loads weights, and the optimizer where the file has one, as `keras.Model` does.

        Args:
            filepath: str or path of a file of `save_weights`, a `.keras` file, or a folder of
                `keras.callbacks.OrbaxCheckpoint`.
            skip_mismatch: bool, whether weights of other shapes are skipped.
            **kwargs: of `keras.Model.load_weights`.

        Raises:
            ValueError: the file has LoRA of another rank (no weight has changed), or weights of
                another model (A and B have not changed).

        Example:
        ```python
        lm.save_weights("model.weights.h5")
        lm.load_weights("model.weights.h5")
        ```
        """
        if orbax_training.is_checkpoint(filepath):
            orbax_training.restore(self, filepath)
            return
        optimizer = getattr(self, "optimizer", None)
        with open_weights(filepath) as store:
            is_known = store is not None and optimizer is not None
            size = saved_optimizer_size(store) if is_known else 0
        # Keras cannot skip a part of a `.keras` file.
        if is_known and not str(filepath).endswith(".keras"):
            is_other = size != len(optimizer.variables)
            if is_other and not (optimizer.built and size > _size_before_build(optimizer)):
                kwargs.setdefault("objects_to_skip", [optimizer])
        token = _WEIGHTS_ALONE.set(True)
        try:
            super().load_weights(filepath, skip_mismatch, **kwargs)
        finally:
            _WEIGHTS_ALONE.reset(token)

    def get_state_tree(self, *args: Any, **kwargs: Any) -> Any:
        """Returns the values of all variables, as `keras.Model.get_state_tree` does.

        On JAX, Keras keeps the weights elsewhere between the batches of an epoch, when callbacks
        such as `OrbaxCheckpoint` ask for them.
        """
        sync_weights(self)
        return super().get_state_tree(*args, **kwargs)

    def set_state_tree(self, state_tree: Mapping[str, Any]) -> None:
        """Assigns values to variables, as `keras.Model.set_state_tree` does.

        Raises:
            ValueError: the tree is of another model or optimizer.
        """
        orbax_training.assign(self, state_tree)

    def load_own_variables(self, store: Any) -> None:
        optimizer = getattr(self, "optimizer", None)
        if not _WEIGHTS_ALONE.get() and getattr(optimizer, "built", False):
            # Keras builds the optimizer of a model that it loads, whatever was saved.
            size = saved_optimizer_size(store)
            is_new = not int(ops.convert_to_numpy(optimizer.iterations.value))
            if is_new and size == _size_before_build(optimizer) < len(optimizer.variables):
                with normal_tensors():
                    self.optimizer = _unbuilt(optimizer)
        super().load_own_variables(store)

    def check_optimizer(self) -> None:
        """Makes the optimizer anew if it was built for other weights and has made no step.

        Raises:
            ValueError: the optimizer was built for other weights and has made a step.
        """
        optimizer = getattr(self, "optimizer", None)
        if optimizer is None or not optimizer.built:
            return
        inner = getattr(optimizer, "inner_optimizer", optimizer)
        built_for = {id(variable) for variable in variables_created_trainable(inner)}
        if built_for == {id(variable) for variable in self.trainable_variables}:
            return
        # With accumulated gradients `iterations` counts updates, and the variable steps.
        counters = [x for x in optimizer.variables if x.path.rpartition("/")[2] == "iteration"]
        if any(int(ops.convert_to_numpy(counter.value)) for counter in counters):
            raise ValueError(
                "Other weights are trained now than those that the optimizer was made for, as "
                "after `enable_lora` or `merge_lora`. Call `compile` before `fit`."
            )
        self.optimizer = type(optimizer).from_config(optimizer.get_config())
        self.optimizer.build(self.trainable_variables)


def _size_before_build(optimizer: keras.Optimizer) -> int:
    """Counts the variables that an optimizer has before it is built, such as its learning rate."""
    return len(_unbuilt(optimizer).variables)


def _unbuilt(optimizer: keras.Optimizer) -> keras.Optimizer:
    return type(optimizer).from_config(optimizer.get_config())
