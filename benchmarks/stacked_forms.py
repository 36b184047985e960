"""Writes a backbone's programs in several forms: layer by layer, or equal layers in a loop.

Equal layers are groups of one cycle of the block types, such as recurrent, recurrent, attention.
Layers behind the last whole group are always written layer by layer. Import tpu.py before this.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import keras
from tpu_compile import rows_of, state_of

from keras_rgemma.generation.decode import NO_TOKEN, DecodeState, decode_block, decode_step
from keras_rgemma.model import backbone_state
from keras_rgemma.model.samplers import read_sampler, without_softmax
from keras_rgemma.ops.cross_entropy import cross_entropy
from keras_rgemma.ops.documents import document_positions
from keras_rgemma.ops.places import places_of
from keras_rgemma.state.records import ModelState

TOKENS_OF_A_LOOP = 32


class Parts(NamedTuple):
    """Holds values that belong to layers.

    Attributes:
        groups: list with a tree for each group; or, stacked, one such tree, each of whose arrays
            has the groups as its first axis.
        rest: tuple or list, what belongs to no group.
    """

    groups: Any
    rest: Any


def by_layers(backbone, values):
    """Sorts one value for each layer into `Parts`."""
    size = len(backbone.config.block_types)
    end = len(values) // size * size
    groups = [tuple(values[start : start + size]) for start in range(0, end, size)]
    return Parts(groups, tuple(values[end:]))


def by_variables(backbone, values):
    """Sorts one value for each of the backbone's variables into `Parts`."""
    value_of = {id(x): value for x, value in zip(backbone.variables, values, strict=True)}
    layers = by_layers(backbone, backbone.transformer_layers)
    variables = [[x for layer in group for x in layer.variables] for group in layers.groups]
    groups = [[value_of.pop(id(x)) for x in group] for group in variables]
    return Parts(groups, list(value_of.values()))


def stacked(parts):
    """Stacks the arrays of `Parts`."""
    return parts._replace(groups=jax.tree.map(lambda *x: jnp.stack(x), *parts.groups))


def _one_by_one(group, x, weights, states):
    """Runs a function of activations, weights and states for each group in turn."""
    states_of = [None] * len(weights) if states is None else states
    after = []
    for of_group, state in zip(weights, states_of, strict=True):
        x, state = group(x, of_group, state)
        after.append(state)
    return x, after


def _called(group, x, weights, states):
    """Calls one compiled function for each group."""
    return _one_by_one(jax.jit(group), x, weights, states)


def _scanned(group, x, weights, states, **options):
    """Loops over stacked groups."""
    return jax.lax.scan(lambda x, one: group(x, *one), x, (weights, states), **options)


class Form(NamedTuple):
    """Describes a form of a program.

    Attributes:
        run: function of a group's function, activations, weights and states of all groups.
        is_stacked: bool, whether weights and states are stacked.
    """

    run: Any
    is_stacked: bool


FORMS = {
    "layer by layer": Form(_one_by_one, False),
    "functions": Form(_called, False),
    "scan": Form(_scanned, True),
    "scan, split": Form(functools.partial(_scanned, _split_transpose=True), True),
}


def forward_of(backbone, form, weights, training):
    """Returns `backbone.call_layers` in a form, with the weights of groups; see `Parts`."""
    variables = by_variables(backbone, backbone.variables).groups
    layers = by_layers(backbone, backbone.transformer_layers)

    def forward(token_ids, places, states=None, return_state=False):
        def through(layers, x, states):
            after = []
            for i, layer in enumerate(layers):
                state = None if states is None else states[i]
                x = layer(x, places, state=state, return_state=return_state, training=training)
                if return_state:
                    x, state = x
                after.append(state)
            return x, tuple(after)

        def group(x, weights, states):
            # The first group's layers, with the weights of any.
            mapping = list(zip(variables[0], weights, strict=True))
            with keras.StatelessScope(state_mapping=mapping):
                return through(layers.groups[0], x, states)

        before = states or Parts(None, None)
        x, of_groups = FORMS[form].run(group, backbone.embed(token_ids), weights, before.groups)
        x, of_rest = through(layers.rest, x, before.rest)
        x = backbone.final_norm(x)
        return (x, Parts(of_groups, of_rest)) if return_state else x

    return forward


def with_weights(backbone, form, function, training=False):
    """Returns a program of `Parts` of weights and of the arguments behind a forward pass."""
    rest = by_variables(backbone, backbone.variables).rest

    def program(weights, *arguments):
        mapping = list(zip(rest, weights.rest, strict=True))
        with keras.StatelessScope(state_mapping=mapping):
            forward = forward_of(backbone, form, weights.groups, training)
            return function(forward, *arguments)

    return program


def prefill(backbone, form, tokens):
    """Returns the program that reads tokens into a state, and its arguments."""

    def run(forward, token_ids, mask, state):
        return backbone_state.step(forward, backbone.rope, token_ids, mask, state)[1]

    return with_weights(backbone, form, run), (*rows_of(tokens), state_of(backbone))


def decode(backbone, form, tokens, in_loop=False):
    """Returns the program that makes one token, or several in a loop, and its arguments."""
    del tokens
    sampler = without_softmax(read_sampler("greedy", backbone.vocabulary_size))

    def run(forward, state):
        class Model:  # what a decode step needs of a language model
            step = staticmethod(functools.partial(backbone_state.step, forward, backbone.rope))
            compute_logits = staticmethod(lambda x: backbone.token_embedding(x, reverse=True))

        stops = jnp.full((1,), NO_TOKEN, "int32")
        if in_loop:
            return decode_block(Model, sampler, stops, state, TOKENS_OF_A_LOOP)
        return decode_step(Model, sampler, stops, state, all_active=True)

    row = jax.ShapeDtypeStruct((1,), "int32")
    ended = jax.ShapeDtypeStruct((1,), "bool")
    state = DecodeState(row, ended, row, state_of(backbone))
    return with_weights(backbone, form, run), (state,)


def train(backbone, form, tokens):
    """Returns the program of the loss of one row and its gradients for LoRA, and its arguments."""
    trained = {id(x) for x in backbone.trainable_variables}
    flags = by_variables(backbone, [id(x) in trained for x in backbone.variables])
    if FORMS[form].is_stacked:
        flags = flags._replace(groups=flags.groups[0])
    flags = jax.tree.leaves(flags)

    def loss(forward, token_ids, mask):
        hidden = forward(token_ids, places_of(document_positions(mask), backbone.rope))
        head = backbone.token_embedding
        losses, _ = cross_entropy(
            hidden[0, :-1],
            keras.ops.convert_to_tensor(head.embeddings),
            token_ids[0, 1:],
            head.logit_soft_cap,
            needs_embedding_gradient=False,
        )
        return losses.mean()

    program = with_weights(backbone, form, loss, training=True)

    def run(weights, *arguments):
        leaves, structure = jax.tree.flatten(weights)
        pairs = list(zip(leaves, flags, strict=True))

        def of_trained(trained):
            trained = iter(trained)
            mixed = [next(trained) if is_trained else leaf for leaf, is_trained in pairs]
            return program(jax.tree.unflatten(structure, mixed), *arguments)

        value, gradients = jax.value_and_grad(of_trained)([x for x, is_one in pairs if is_one])
        # Back in their places, so that each form's gradients can be stacked.
        gradients = iter(gradients)
        in_place = [next(gradients) if is_trained else None for _, is_trained in pairs]
        return value, jax.tree.unflatten(structure, in_place)

    return run, rows_of(tokens)


WORK = {
    "prefill": prefill,
    "decode": decode,
    "decode loop": functools.partial(decode, in_loop=True),
    "train": train,
}


def lay_out(backbone, form, values, arguments):
    """Lays values of variables and the arguments of a program out as a form takes them.

    Returns:
        A tuple of `Parts` of the weights and of the arguments.
    """
    stack = stacked if FORMS[form].is_stacked else lambda parts: parts

    def of_state(x):
        if isinstance(x, ModelState):
            return x._replace(layers=stack(by_layers(backbone, x.layers)))
        return x

    arguments = jax.tree.map(of_state, arguments, is_leaf=lambda x: isinstance(x, ModelState))
    return stack(by_variables(backbone, values)), *arguments


def without_form(outputs, form):
    """Stacks the `Parts` in the outputs of a program in any form."""
    if FORMS[form].is_stacked:
        return outputs

    def is_parts(x):
        return isinstance(x, Parts)

    return jax.tree.map(lambda x: stacked(x) if is_parts(x) else x, outputs, is_leaf=is_parts)
