"""Refuses meshes that do not fit a model, and rows that do not fit a mesh, with the way out."""

import math
from collections.abc import Mapping, Sequence

import keras

from keras_rgemma.config import RGemmaConfig
from keras_rgemma.keras_internals.distribution import Distribution
from keras_rgemma.sharding.entries import GATES, axis_size, layout_in_force, sequence_axis


def check_mesh(
    device_mesh: keras.distribution.DeviceMesh,
    model_axis: str,
    data_axis: str,
    sequence_axis: str | None = None,
) -> None:
    """Checks the arguments of `RGemmaBackbone.get_layout_map`.

    Raises:
        TypeError: `device_mesh` is no mesh.
        ValueError: the mesh has no such axis, or has devices that are not there.
    """
    if not isinstance(device_mesh, keras.distribution.DeviceMesh):
        raise TypeError(
            "`device_mesh` must be a keras.distribution.DeviceMesh. Received: "
            f"{device_mesh!r}. Write keras.distribution.DeviceMesh((1, 8), ('batch', 'model'))."
        )
    names = tuple(device_mesh.axis_names)
    for argument, axis in (
        ("model_parallel_dim_name", model_axis),
        ("data_parallel_dim_name", data_axis),
        ("sequence_parallel_dim_name", sequence_axis),
    ):
        if axis not in names and (argument, axis) != ("sequence_parallel_dim_name", None):
            raise ValueError(
                f"The mesh has the axes {names}, of {tuple(device_mesh.shape)} devices. Received: "
                f"`{argument}={axis!r}`. Name one of its axes, or give the mesh an axis of that "
                "name; an axis may have one device."
            )
    if model_axis == data_axis:
        raise ValueError(
            f"Weights and rows need an axis each. Received: {model_axis!r} for both. Make a mesh "
            "of two axes; an axis may have one device."
        )
    if sequence_axis == data_axis:
        raise ValueError(
            f"Rows and their tokens need an axis each. Received: {sequence_axis!r} for both. Make "
            "a mesh with an axis for tokens, such as keras.distribution.DeviceMesh((1, 1, 8), "
            "('batch', 'model', 'sequence')), or name the model axis."
        )
    try:
        device_mesh.backend_mesh  # noqa: B018 (looks the devices up)
    except (ValueError, RuntimeError) as error:
        wanted = list(map(str, device_mesh.devices.flatten()))
        raise ValueError(
            f"The mesh {dict(zip(names, device_mesh.shape, strict=True))} asks for devices that "
            f"are not there: {wanted}. JAX has {keras.distribution.list_devices()}. Make the mesh "
            "of these, or start JAX with more (on a CPU: "
            "XLA_FLAGS=--xla_force_host_platform_device_count=8)."
        ) from error


def check_sizes(config: RGemmaConfig) -> None:
    """Checks that the mesh of the layout map in force divides an architecture.

    The blocks of the gates and the query heads need not be divided: where they are not, their
    inputs are gathered. Nothing is checked without a layout map of `RGemmaBackbone.get_layout_map`.

    Args:
        config: `RGemmaConfig`.

    Raises:
        ValueError: an axis of the mesh does not divide a dimension.
    """
    layout = layout_in_force("BTM")
    if layout is None:
        return
    over_model = {
        "vocabulary_size": config.vocabulary_size,
        "intermediate_dim": config.intermediate_dim,
        "lru_dim": config.recurrence_width,
        "num_query_heads * head_dim": config.num_query_heads * config.key_size,
    }
    _check_axis(over_model, layout.axes[2])
    weights_axis = layout_in_force(GATES).axes[1]
    if weights_axis is not None:
        block = config.recurrence_width // config.num_query_heads
        over_data = {"hidden_dim": config.hidden_dim, "lru_dim / num_query_heads": block}
        _check_axis({**over_data, **over_model}, weights_axis)


def _check_axis(sizes: Mapping[str, int], axis: str) -> None:
    count = axis_size(axis)
    for name, size in sizes.items():
        if size % count:
            common = math.gcd(*sizes.values())
            fitting = [n for n in range(1, min(common, 64) + 1) if common % n == 0]
            raise ValueError(
                f"The axis {axis!r} of the mesh has {count} devices, which do not divide "
                f"`{name}`, {size}. Make a mesh whose axis {axis!r} has one of {fitting} devices: "
                "they divide all that lies along it."
            )


def check_length(length: object) -> None:
    """Checks that a mesh which divides rows over time divides the tokens of a training step.

    Args:
        length: int, T; any other value is not checked.

    Raises:
        ValueError: the sequence axis does not divide `length`.
    """
    axis = sequence_axis()
    if axis is None or not isinstance(length, int) or length % axis_size(axis) == 0:
        return
    count = axis_size(axis)
    raise ValueError(
        f"The axis {axis!r} of the mesh has {count} devices, which do not divide rows of {length} "
        f"tokens among them. Make the length of rows a multiple of {count}, such as "
        f"`sequence_length={-(-length // count) * count}` of the preprocessor (pads fill a row), "
        f"or a mesh with fewer devices along {axis!r}."
    )


def check_shape(
    path: str, shape: Sequence[int], layout: keras.distribution.TensorLayout | None
) -> None:
    """Checks that a mesh divides the array of a weight.

    Args:
        path: str, of the weight.
        shape: tuple of ints.
        layout: `keras.distribution.TensorLayout`, or None.

    Raises:
        ValueError: an axis of the mesh does not divide an axis of the array.
    """
    for i, (size, axis) in enumerate(zip(shape, layout.axes if layout else (), strict=False)):
        if axis is not None and size % axis_size(axis):
            raise ValueError(
                f"The axis {axis!r} of the mesh has {axis_size(axis)} devices, which do not divide "
                f"axis {i} of {path!r}, whose shape is {tuple(shape)}. Make a mesh with fewer "
                f"devices along {axis!r} (two numbers of int4 share a byte, so that a dimension "
                "counts half)."
            )


def check_same_distribution(made_in: Distribution | None, name: str) -> None:
    """Checks that a model runs under the distribution that it was made in.

    Args:
        made_in: `keras.distribution.Distribution`, or None.
        name: str, of the model's class.

    Raises:
        ValueError: another distribution is in force.
    """
    now = keras.distribution.distribution()
    if now is None or now is made_in:
        return
    if made_in is not None and made_in.device_mesh.backend_mesh == now.device_mesh.backend_mesh:
        return
    mesh = dict(zip(now.device_mesh.axis_names, now.device_mesh.shape, strict=True))
    before = "no distribution was set"
    if made_in is not None:
        shape = zip(made_in.device_mesh.axis_names, made_in.device_mesh.shape, strict=True)
        before = f"one with the mesh {dict(shape)} was set"
    raise ValueError(
        f"A keras.distribution with the mesh {mesh} is in force, but when this {name} was made "
        f"{before}: its weights do not lie on that mesh. Call "
        "keras.distribution.set_distribution(...) before the model is made or loaded, or "
        "keras.distribution.set_distribution(None) to go on with the model as it is."
    )
