"""The public names of the package, read from its classes, and the hooks that are none of them."""

import inspect
import pathlib
import re

import keras_rgemma
from keras_rgemma.distribution.report import Plan, Program
from keras_rgemma.generation.chat import Chat
from keras_rgemma.generation.stream import Stream

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Classes that users get from calls and do not import.
RETURNED = (Chat, Stream, Plan, Program)
# Methods without an underscore that Keras, KerasHub or this package calls, and no user.
HOOKS = {
    "Keras": (
        "build call compile_from_config compute_loss compute_metrics from_config get_config "
        "load_own_variables make_predict_function make_test_function make_train_function "
        "predict_on_batch rematerialized_call test_on_batch test_step train_on_batch train_step "
        "get_state_tree set_state_tree tree_flatten tree_unflatten torchtree_flatten "
        "torchtree_unflatten"
    ),
    "KerasHub": (
        "backbone_cls end_token2 get_quantization_layer_structure loaded_proto "
        "make_generate_function preprocess_samples preprocessor_cls set_proto start_of_turn "
        "tokenizer_cls wrap_graph_processor wrap_processor"
    ),
    "generation.model.GenerativeModel, and what a backbone and a model ask of each other": (
        "bound bound_step call_layers check_optimizer compile_key compute_logits "
        "distribution_scope embed fingerprint fingerprint_later from_folder hidden_states "
        "remember_distribution rope state_specification text_preprocessor"
    ),
    "`RGemmaCausalLM.load_chat`": "load",
}


def hooks(owner):
    """The names of a class that are hooks, a set."""
    names = {name for text in HOOKS.values() for name in text.split()}
    if owner is keras_rgemma.RGemmaState:
        names.discard("load")
    if issubclass(owner, keras_rgemma.RGemmaCausalLM):
        names |= {"initial_state", "step"}  # the backbone's, as generation calls them
    return names


def public():
    """All public names: dicts of a dotted name to a class, a function or a member of a class."""
    objects = {f"keras_rgemma.{name}": getattr(keras_rgemma, name) for name in keras_rgemma.__all__}
    module = objects.pop("keras_rgemma.finetuning")
    objects |= {f"keras_rgemma.finetuning.{name}": getattr(module, name) for name in module.__all__}
    objects |= {f"{cls.__module__}.{cls.__name__}": cls for cls in RETURNED}
    members = {}
    for path, cls in objects.items():
        if inspect.isclass(cls):
            # What a subclass inherits from another public class is documented there.
            bases = [x for x in objects.values() if inspect.isclass(x) and x in cls.__mro__[1:]]
            known = {name for base in bases for name in own(base)}
            for name, member in own(cls).items():
                if name not in known or name in cls.__dict__:
                    members[f"{path}.{name}"] = member
    return objects, members


def own(cls):
    """The members of a class that the package defines, by name, without hooks."""
    names = {name for name in dir(cls) if not name.startswith("_")}
    if "__getitem__" in cls.__dict__:
        names.add("__getitem__")
    found = {}
    for name in sorted(names - hooks(cls)):
        owner = next((x for x in cls.__mro__ if name in x.__dict__), None)
        if owner and owner.__module__.startswith("keras_rgemma"):
            found[name] = owner.__dict__[name]
    return found


def is_method(member):
    """Whether a member of a class is called."""
    return callable(getattr(member, "__func__", member)) and not isinstance(member, property)


def docstring(member):
    """The docstring of a member as it stands, not one that it inherits."""
    return getattr(getattr(member, "__func__", member), "__doc__", None) or ""


def example(text):
    """The code of the example in a docstring; None if it has none."""
    found = re.search(r"^Example:\n```python\n(.*?)^```", inspect.cleandoc(text), re.M | re.S)
    return found and found[1]
