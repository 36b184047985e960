"""Replays the decode step on a GPU as a CUDA graph: one launch for all kernels of a token.

A step of a large model launches some thousand small kernels, and Python takes longer to launch them
than the GPU to run them. A graph launches the same kernels with the same arguments, so the step
reads and writes buffers of its own, one set for each number of rows.
"""

from __future__ import annotations

import contextlib
import functools
import threading
import warnings
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
import torch

from keras_rgemma.generation.torch.constants import KeptConstants
from keras_rgemma.keras_internals.torch import WithoutHost
from keras_rgemma.state.records import ModelState
from keras_rgemma.types import Tree

_KEPT = 4  # numbers of rows whose buffers are kept
_recording = threading.Lock()  # PyTorch records one graph at a time in a process


class _Recorded(NamedTuple):
    """Holds a graph of a step.

    Attributes:
        replay: function without arguments that runs the step on its buffers.
        token_ids, padding_mask: buffers of the arguments; no mask if there are no pads.
        hidden: buffer of the result.
        constants: `KeptConstants` that the graph reads, or None.
    """

    replay: Callable[[], None]
    token_ids: torch.Tensor
    padding_mask: torch.Tensor | None
    hidden: torch.Tensor
    constants: KeptConstants | None


class ReplayedStep:
    """Computes the `step` of a `generation.model.Model` by graphs, recorded as they are needed.

    Each thread has buffers of its own. What a step returns holds until the next one.

    Args:
        step: the function, which may write into the ring buffers of its argument `state`.
        makes_constants: bool, whether the step may make tensors of numbers. A step that
            `torch.compile` has compiled does not, and would be compiled again to look for them.
    """

    def __init__(self, step: Callable[..., Any], makes_constants: bool = True) -> None:
        self._new_graphs = functools.partial(_Graphs, step, makes_constants)
        self._of_thread = threading.local()
        self._graphs = {}  # `_Graphs` by thread
        self._lock = threading.Lock()

    def __call__(
        self,
        token_ids: torch.Tensor,
        padding_mask: torch.Tensor | None,
        state: ModelState,
        has_begun: bool = False,
    ) -> tuple[torch.Tensor, ModelState]:
        if not hasattr(self._of_thread, "graphs"):
            self._of_thread.graphs = self._adopted()
        return self._of_thread.graphs.step(token_ids, padding_mask, state, has_begun)

    def _adopted(self) -> _Graphs:
        """Returns the graphs of a thread that has ended, or new ones: a server may start many."""
        with self._lock:
            ended = next((x for x in self._graphs if not x.is_alive()), None)
            graphs = self._graphs.pop(ended, None) or self._new_graphs()
            self._graphs[threading.current_thread()] = graphs
        return graphs


class _Graphs:
    """Holds the graphs of a step and their buffers, for one thread at a time."""

    def __init__(self, step: Callable[..., Any], makes_constants: bool) -> None:
        self._step = step
        self._makes_constants = makes_constants
        self._states = {}  # `ModelState` of buffers by the number of rows
        self._graphs = {}  # `_Recorded` by that and by whether there is a mask; None if impossible

    def step(
        self,
        token_ids: torch.Tensor,
        padding_mask: torch.Tensor | None,
        state: ModelState,
        has_begun: bool,
    ) -> tuple[torch.Tensor, ModelState]:
        if not (has_begun and can_record(token_ids)):
            return self._step(token_ids, padding_mask, state, has_begun)
        key = (len(token_ids), padding_mask is not None)
        if key not in self._graphs:
            self._graphs[key] = self._recorded(token_ids, padding_mask, state)
        graph = self._graphs[key]
        if graph is None:
            return self._step(token_ids, padding_mask, state, has_begun)
        buffers = self._states[len(token_ids)]
        graph.token_ids.copy_(token_ids)
        if padding_mask is not None:
            graph.padding_mask.copy_(padding_mask)
        if state is not buffers:
            _copy(state, buffers)
        graph.replay()
        return graph.hidden, buffers

    def _recorded(
        self, token_ids: torch.Tensor, padding_mask: torch.Tensor | None, state: ModelState
    ) -> _Recorded | None:
        """Returns the `_Recorded` step, or None where it cannot be recorded. The state stays."""
        token_ids = token_ids.clone()
        padding_mask = None if padding_mask is None else padding_mask.clone()
        before = keras.tree.map_structure(torch.clone, state)
        buffers = self._buffers(len(token_ids), state)
        _copy(before, buffers)

        def run() -> torch.Tensor:
            hidden, after = self._step(token_ids, padding_mask, buffers, True)
            _copy(after, buffers)
            return hidden

        constants = KeptConstants() if self._makes_constants else None
        try:
            replay, hidden = record(run, token_ids.device, constants)
        except RuntimeError as error:
            reason = str(error).strip() or type(error).__name__
            warnings.warn(
                "The decode step of this model cannot be recorded as a CUDA graph: its kernels are "
                f"launched one by one, which is slower. The reason: {reason}",
                stacklevel=2,
            )
            return None
        finally:
            _copy(before, buffers)
        return _Recorded(replay, token_ids, padding_mask, hidden, constants)

    def _buffers(self, rows: int, state: ModelState) -> ModelState:
        """Returns the buffers for a number of rows; new ones may take the place of the oldest."""
        if rows not in self._states:
            if len(self._states) == _KEPT:
                oldest = next(iter(self._states))
                del self._states[oldest]
                self._graphs = {k: v for k, v in self._graphs.items() if k[0] != oldest}
            self._states[rows] = keras.tree.map_structure(torch.empty_like, state)
        return self._states[rows]


def can_record(tensor: torch.Tensor) -> bool:
    """Returns whether functions of a tensor can be recorded: whether it is on a GPU of NVIDIA."""
    return tensor.is_cuda and torch.version.cuda is not None


def record(
    function: Callable[[], Any], device: torch.device, constants: KeptConstants | None = None
) -> tuple[Callable[[], None], Any]:
    """Records a function without arguments as a CUDA graph.

    Args:
        function: of no arguments; runs two or three times.
        device: `torch.device` of its tensors.
        constants: `KeptConstants` for what it makes of numbers; None if it makes no tensor of them.

    Returns:
        The function that replays it, and the result, which each replay writes anew.

    Raises:
        RuntimeError: it cannot be recorded.
    """
    # Keras computes on a device without making it PyTorch's current one, on which streams are made.
    with _recording, torch.cuda.device(device):
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        try:
            # On another stream, as PyTorch's documentation of graphs asks. Libraries choose their
            # kernels and take their memory here.
            with torch.cuda.stream(stream):
                if constants is None:
                    function()
                else:
                    with constants:
                        function()
                    with constants, WithoutHost():
                        function()
        finally:
            torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with warnings.catch_warnings(), torch.cuda.stream(stream):
            warnings.filterwarnings("error", "The CUDA Graph is empty")
            with (
                torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"),
                constants or contextlib.nullcontext(),
            ):
                result = function()
    return graph.replay, result


def _copy(source: Tree, target: Tree) -> None:
    """Copies a structure of tensors into another one; a tensor that is in both stays."""
    for new, old in zip(keras.tree.flatten(source), keras.tree.flatten(target), strict=True):
        if new is not old:
            old.copy_(new)
