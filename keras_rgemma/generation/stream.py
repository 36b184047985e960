"""Text as it is made."""

from keras_rgemma.generation.generate import start
from keras_rgemma.generation.outputs import arrays_of, decode_deltas
from keras_rgemma.generation.prompts import read

AT_A_TIME = 1  # tokens


def stream(task, inputs, request):
    """See `RGemmaCausalLM.stream`."""
    batches, is_scalar = read(task, inputs, request)
    if len(batches) > 1:
        raise ValueError(f"`stream` takes one batch of prompts. Received {len(batches)} batches.")
    (batch,) = batches
    programs = task.make_generate_function()
    check_streams(programs)
    tokens = start(task, batch, request, keeps_state=True, programs=programs)
    if not batch.is_text:
        pieces = _arrays(task, tokens, request)
    elif is_scalar:
        pieces = (said for (said,) in _texts(task, tokens, request))
    else:
        pieces = _texts(task, tokens, request)
    return Stream(tokens, pieces)


def check_streams(programs):
    """Raises ValueError if the sampler of `GenerationPrograms` does not write token by token."""
    if not programs.is_stepwise:
        raise ValueError(
            f"{type(programs.sampler).__name__} decides on tokens only after it has seen later "
            "ones, so its text cannot be streamed. Use another sampler, or `generate`."
        )


class Stream:
    """An iterator of what a model writes, made as it is asked for.

    Nothing is computed between two pieces, so whoever stops asking stops the work.

    Args:
        tokens: `TokenStream`.
        pieces: generator of the pieces.
    """

    def __init__(self, tokens, pieces):
        self._tokens, self._pieces = tokens, pieces

    def __iter__(self):
        return self

    def __next__(self):
        return next(self._pieces)

    def close(self):
        """Ends the text where it is: there are no more pieces."""
        self._pieces.close()

    @property
    def state(self):
        """`RGemmaState` after all tokens so far, those included whose text is held back."""
        return self._tokens.session()


def _texts(task, tokens, request):
    """Lists of B str, without those that are empty throughout."""
    for _, said in decode_deltas(task, tokens, request, AT_A_TIME):
        if any(said):
            yield said


def _arrays(task, tokens, request):
    """Dicts of `token_ids` and `padding_mask`, each with the new tokens alone."""
    if request.stop:
        pieces = (new for new, _ in decode_deltas(task, tokens, request, AT_A_TIME))
    else:
        pieces = iter(lambda: None if tokens.ended else tokens.next(AT_A_TIME), None)
    for new in pieces:
        if any(map(len, new)):
            yield arrays_of([[] for _ in new], new, 0)
