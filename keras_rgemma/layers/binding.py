"""Lets a layer and a faster step share one wiring: functions take their parts as arguments."""

from typing import TypeVar

_Part = TypeVar("_Part")


def unchanged(part: _Part) -> _Part:
    """Returns a part of a layer as it is: the `bind` of a layer's own `call`.

    The method `bound(bind)` of a layer returns its mathematics, a pure function of arrays, with
    `bind(part)` in place of each of its sublayers, weights and operations. Another `bind` may
    return raw tensors, products without Keras' bookkeeping, or operations made for one backend; the
    wiring stays that of training.
    """
    return part
