"""The private names of Keras and KerasHub that this package uses, one function a name.

No other file touches one. Each has a test that says what Keras does with it: see
`tests/test_keras_internals.py`.
"""

import contextlib

import keras
from keras.src.backend.common import global_state
from keras.src.tree.tree_api import register_tree_node_class
from keras_hub.src.utils.preset_utils import CONFIG_FILE, load_json

_WAITING = "uninitialized_variables"


def register_pytree(cls):
    """Lets `keras.tree` look into a class with `tree_flatten` and `tree_unflatten`."""
    register_tree_node_class(cls)


def preset_config(preset):
    """The contents of the `config.json` of a Keras preset, a dict.

    Args:
        preset: str, a folder or the handle of a hub.
    """
    return load_json(preset, CONFIG_FILE)


@contextlib.contextmanager
def uninitialized_variables():
    """Lets variables that are made inside wait for their first value."""
    others = list(global_state.get_global_attribute(_WAITING) or [])
    try:
        with keras.StatelessScope(initialize_variables=False):
            yield
    finally:
        # Keras would initialise them as soon as any other model is made.
        global_state.set_global_attribute(_WAITING, others)
