"""How a layer and a faster step share one wiring: functions whose parts are given to them."""


def unchanged(part):
    """Binds a part of a layer as it is: what a layer's own `call` does.

    The method `bound(bind)` of a layer returns its mathematics, a pure function of arrays, with
    `bind(part)` in place of each of its sublayers, weights and operations. Another `bind` may give
    raw tensors, products without Keras' bookkeeping, or operations made for one backend; the
    wiring stays the one that is trained.
    """
    return part
