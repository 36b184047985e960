"""A model on a mesh of eight devices computes what it computes on one."""

import functools
import inspect

import eight_devices
import keras
import keras_hub
import pytest
from processes import results_of

import keras_rgemma
from keras_rgemma.checkpoints.names import weights
from keras_rgemma.config import RGemmaConfig

pytestmark = pytest.mark.skipif(
    keras.config.backend() != "jax", reason="keras.distribution is for JAX"
)
OVER_MODEL, OVER_DATA = {"V", "L", "M", "HK"}, {"D", "I"}


def results(scenario):
    """What `eight_devices.py` returns."""
    return results_of(eight_devices.__file__, scenario)


def trained(is_wanted=lambda sizes, mesh, fully_sharded, mode: True):
    """The results of training whose case is wanted."""
    return [x for x in results("training") if is_wanted(*x["case"])]


def config(sizes):
    return RGemmaConfig(**eight_devices.SIZES[sizes])


def share(dimensions, sizes, mesh, fully_sharded):
    """Into how many parts an array of these dimensions is divided."""
    data, model = mesh
    over_model = OVER_MODEL | ({"H"} if config(sizes).num_query_heads % model == 0 else set())
    parts = model if over_model & set(dimensions) else 1
    is_over_data = fully_sharded and len(dimensions) > 1 and OVER_DATA & set(dimensions)
    return parts * (data if is_over_data else 1)


def arrays(sizes, mode):
    """Dimensions and bytes of the weights of a mode, and whether each is trained."""
    rank = eight_devices.RANK
    for weight in weights(config(sizes)):
        dimensions, size = weight.dimensions.split(), weight.shape
        count = functools.reduce(lambda x, y: x * y, size)
        name = weight.path.rpartition("/")[2]
        is_matrix = name == "embeddings" or (name == "kernel" and dimensions[0] != "R")
        is_rounded = mode == "qlora" and is_matrix
        yield dimensions, count * (1 if is_rounded else 4), mode == "full"
        if is_rounded:  # a scale for each output of a matrix, each row of the embedding
            axis = 0 if name == "embeddings" else 1 if len(size) == 2 else (0, 2)
            axes = axis if isinstance(axis, tuple) else (axis,)
            scales = functools.reduce(lambda x, y: x * y, (size[i] for i in axes))
            kept = [dimensions[i] for i in axes]
            yield kept, 4 * scales, False
        if mode != "full" and name == "kernel" and is_matrix:
            inputs = count // size[-1]
            yield [*dimensions[:-1], "rank"], 4 * inputs * rank, True
            yield ["rank", dimensions[-1]], 4 * rank * size[-1], True


def test_the_layout_map_has_the_arguments_of_keras_hub():
    theirs, ours = (
        [x.replace(annotation=x.empty) for x in inspect.signature(function).parameters.values()]
        for function in (
            keras_hub.models.GemmaBackbone.get_layout_map,
            keras_rgemma.RGemmaBackbone.get_layout_map,
        )
    )
    assert ours[: len(theirs)] == theirs
    assert all(x.kind is x.KEYWORD_ONLY for x in ours[len(theirs) :])


@pytest.mark.slow
def test_training_equals_that_of_one_device():
    assert len(trained()) == len(eight_devices.TRAINED) * len(eight_devices.MODES)
    for result in trained():
        # Sums of float32 in another order.
        assert result["losses"] < 1e-5 and result["weights"] < 1e-5, result["case"]
        assert result["changes"] > 1e-4, result["case"]


@pytest.mark.slow
def test_each_device_holds_its_share_of_weights_and_slots():
    for result in trained():
        sizes, mesh, fully_sharded, mode = result["case"]
        expected = {"weight_bytes": 0, "slot_bytes": 0}
        for dimensions, nbytes, is_trained in arrays(sizes, mode):
            nbytes /= share(dimensions, sizes, mesh, fully_sharded)
            expected["weight_bytes"] += nbytes
            expected["slot_bytes"] += nbytes if is_trained else 0
        for name, nbytes in expected.items():
            assert result[name] == [nbytes] * 8, (result["case"], name)


def chunk(data):
    """How many tokens a device computes the logits of at a time."""
    return -(-_tokens(data) // num_chunks(data))


def num_chunks(data):
    """In how many chunks a device computes the logits of all its tokens."""
    return -(-_tokens(data) // (eight_devices.CHUNK // data))


def _tokens(data):
    return eight_devices.ROWS * eight_devices.LENGTH // data


def moved(moves):
    """Shapes and counts of what is no sum over devices."""
    return {tuple(shape): count for kind, shape, count in moves if kind != "all-reduce"}


@pytest.mark.slow
def test_no_step_moves_a_weight():
    rows, length = eight_devices.ROWS, eight_devices.LENGTH
    for result in trained(lambda sizes, mesh, fully_sharded, mode: not fully_sharded):
        sizes, (data, model), _, mode = result["case"]
        # The largest logit of each device, and where it is, for the tokens of a chunk: of the last
        # one, and in the loop over the others.
        places = min(2, num_chunks(data))
        largest = {} if model == 1 else {"train": {(chunk(data), model): 2 * places}}
        largest |= {} if model == 1 else {"decode": {(rows // data, model): 2}}
        # Queries and their gradient; inputs of both gates together, and the gradient of each.
        uneven = {
            "train": {(rows, length, 40): 2, (rows, length, 80): 3},
            "prefill": {(rows, length, 80): 1},
            "decode": {(rows, 1, 40): 1, (rows, 1, 80): 1},
        }
        for program, moves in result["moves"].items():
            expected = dict(largest.get(program, {}))
            expected |= uneven[program] if sizes == "uneven" else {}
            assert moved(moves) == expected, (result["case"], program)
            if data == 1 and mode == "full":  # no gradients are summed over rows
                sums = {tuple(shape) for kind, shape, _ in moves if kind == "all-reduce"}
                assert not sums & set(map(tuple, result["shapes"])), (result["case"], program)


@pytest.mark.slow
def test_a_fully_sharded_step_gathers_each_weight_once_a_pass():
    cases = trained(lambda sizes, mesh, fully_sharded, mode: fully_sharded and mode == "full")
    for result in cases:
        sizes, mesh, _, mode = result["case"]
        whole = sum(
            nbytes / 4 / share(dimensions, sizes, mesh, False)
            for dimensions, nbytes, _ in arrays(sizes, mode)
            if len(dimensions) > 1
        )
        for program, passes in (("train", 2), ("prefill", 1), ("decode", 1)):
            counts = moved(result["moves"][program])
            # The largest logit of each device is no weight.
            gathered = sum(
                count * functools.reduce(lambda x, y: x * y, shape)
                for shape, count in counts.items()
                if shape not in {(chunk(mesh[0]), 4), (4, 4)}
            )
            assert 0 < gathered <= passes * whole, (program, gathered, whole)
    assert cases


@pytest.mark.slow
def test_text_and_scores_equal_those_of_one_device():
    for result in results("generation"):
        assert result["differ"] == [], result["case"]
        # Sums of float32 in another order, of logits up to 30.
        assert result["scores"] < 5e-5 and result["loss"] < 5e-5, result["case"]
    crossed = [set(result["crossed"]) for result in results("generation")]
    assert sum(map(bool, crossed)) == 2 and all(len(texts) < 2 for texts in crossed)


@pytest.mark.slow
def test_each_device_holds_its_share_of_a_state():
    for result in results("generation"):
        sizes, (data, model) = result["case"]
        c, rows = config(sizes), eight_devices.ROWS // data
        recurrent = (1 + c.conv_width - 1) * c.recurrence_width // model
        attention = 2 * c.sliding_window_size * c.key_size
        nbytes = 4 * rows * (1 + recurrent + attention)
        assert result["state_bytes"] == [nbytes] * 8, result["case"]


def test_a_variable_of_keras_lies_where_it_is_told_to():
    found = results("placement")["variables"]
    assert found == {
        "waits": True,
        "before": [[2, 4]] * 8,
        "now": [[2, 1]] * 8,
        "later": [[2, 1]] * 8,
    }


def test_weights_that_come_later_lie_with_the_others():
    found = results("placement")
    assert found["same"] and found["scores"] < 1e-5
    layouts = {path.split("/", 1)[1]: spec for path, spec in found["layouts"].items()}
    columns, rows, vector, whole = (
        "P(None, 'model')",
        "P('model', None)",
        "P('model',)",
        "P(None, None)",
    )
    for name in ("recurrent_block/linear_x", "mlp_block/ffw_up", "attention_block/query"):
        for matrix in ("kernel", "kernel_scale", "kernel_zero", "lora_kernel_b"):
            assert layouts[f"{name}/{matrix}"] == columns, (name, matrix)
        assert layouts[f"{name}/lora_kernel_a"] == whole
    for name in ("recurrent_block/linear_out", "mlp_block/ffw_down"):
        assert layouts[f"{name}/kernel"] == layouts[f"{name}/lora_kernel_a"] == rows
        assert layouts[f"{name}/lora_kernel_b"] == whole
    gate = "recurrent_block/rg_lru/a_gate"
    assert layouts[f"{gate}/kernel"] == rows and layouts[f"{gate}/lora_kernel_b"] == whole
    assert layouts[f"{gate}/lora_kernel_a"] == "P('model', None, None)"
    assert layouts["attention_block/key/kernel"] == whole
    assert layouts["embeddings_scale"] == layouts["embeddings_zero"] == vector


@pytest.mark.parametrize(
    "name, words",
    [
        ("no mesh", ("TypeError", "'model'", "DeviceMesh((1, 8)")),
        ("no axis", ("model_parallel_dim_name='tensor'", "('batch', 'model')")),
        ("one axis", ("'model' for both",)),
        ("no devices", ("'cpu:15'", "'cpu:7'", "device_count=8")),
        ("no kind", ("'tpu:0'", "'cpu:7'")),
        ("intermediate_dim", ("'model'", "8 devices", "`intermediate_dim`, 44", "[1, 2, 4]")),
        ("vocabulary_size", ("'model'", "8 devices", "`vocabulary_size`, 402", "[1, 2]")),
        ("lru_dim", ("'model'", "8 devices", "`lru_dim`, 36", "[1, 2, 4]")),
        ("heads", ("'model'", "8 devices", "`num_query_heads * head_dim`, 12", "[1, 2, 4]")),
        ("int4", ("'model'", "8 devices", "/kernel'", "(20, 20)", "share a byte")),
        ("hidden_dim", ("'batch'", "8 devices", "`hidden_dim`, 20", "[1, 2, 4]")),
        ("small batch", ("'batch'", "8 devices", "4 rows", "`batch_size`")),
        ("last batch", ("'batch'", "8 devices", "4 rows", "`drop_remainder=True`")),
        ("evaluate", ("'batch'", "8 devices", "4 rows")),
        ("predict", ("'batch'", "8 devices", "4 rows")),
        ("set after: fit", ("no distribution was set", "before the model is made")),
        ("set after: generate", ("no distribution was set", "before the model is made")),
        ("another mesh", ("'batch': 2, 'model': 4", "'batch': 8, 'model': 1")),
        ("the same mesh", ("nothing",)),
    ],
)
def test_bad_input_is_named_with_the_way_out(name, words):
    message = results("errors")[name]
    assert all(word in message for word in words), message
