"""Feeds batches that Python makes to Keras' loops of training, evaluation and prediction."""

import warnings
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from keras.src.trainers.data_adapters.generator_data_adapter import GeneratorDataAdapter

if TYPE_CHECKING:  # to a type checker that reads annotations alone, Keras' class is unknown
    _Adapter = object
else:
    _Adapter = GeneratorDataAdapter


class BatchesAdapter(_Adapter):
    """Adapter that stands for `x` in `keras.Model.fit`, `evaluate` and `predict`.

    Keras' own for generators gives its batches once. This one begins anew with each epoch.

    Args:
        batches: iterable that begins a pass with each `iter`, over tuples `(x, y, sample_weight)`
            of arrays; with the attributes `first`, a list of its first batches, and `num_batches`,
            an int or None, and the method `forget`, after which the next pass does not use `first`.
        source: an object that may have methods `on_epoch_begin` and `on_epoch_end`.
        warns_of_end: bool, whether Keras warns when a pass ends, as it should where the user said
            how many steps an epoch has.
        part: function of a batch, and of whether it is the first one of a pass, that returns the
            rows of this process; None for all rows.

    Attributes:
        error: the exception that was raised while a batch was made, or None. TensorFlow raises one
            of its own instead.
    """

    batches: Any
    error: Exception | None
    part: Callable[[Any, bool], Any] | None
    generator: Callable[[], Iterator[Any]]

    def __init__(
        self,
        batches: Any,
        source: object | None = None,
        warns_of_end: bool = True,
        part: Callable[[Any, bool], Any] | None = None,
    ) -> None:
        self.batches = batches
        self.error = None
        self.part = part
        self.generator = self._pass
        self._first_batches = batches.first
        self._output_signature = None
        self._source = source
        self._warns_of_end = warns_of_end
        self._quiet = None

    @property
    def num_batches(self) -> int | None:
        return self.batches.num_batches

    def on_epoch_begin(self) -> None:
        getattr(self._source, "on_epoch_begin", lambda: None)()

    def on_epoch_end(self) -> None:
        self.close()
        if hasattr(self._source, "on_epoch_end"):
            self._source.on_epoch_end()
            self.batches.forget()

    def close(self) -> None:
        """Lets warnings pass again."""
        if self._quiet is not None:
            quiet, self._quiet = self._quiet, None
            quiet.__exit__(None, None, None)

    def _pass(self) -> Iterator[Any]:
        try:
            for i, batch in enumerate(self.batches):
                yield batch if self.part is None else self.part(batch, i == 0)
        except Exception as error:
            self.error = error
            raise
        if not self._warns_of_end and self._quiet is None:
            # Keras finds out by the end that there is no other batch, warns that data ran out, and
            # calls `on_epoch_end`.
            self._quiet = warnings.catch_warnings()
            self._quiet.__enter__()
            warnings.filterwarnings("ignore", "Your input ran out of data")
