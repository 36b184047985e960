"""The real clients of the hubs fetch and load models; what goes wrong is told with the way out."""

import sys

import numpy as np
import pytest
from huggingface_hub import constants

import tiny
from backend_independent import backend_independent
from checkpoints import loopback
from keras_rgemma import RGemmaBackbone, RGemmaCausalLM, RGemmaCausalLMPreprocessor, RGemmaTokenizer
from keras_rgemma.checkpoints import cache, export, safetensors

HF, MODEL_SCOPE = "hf://someone/model", "modelscope://someone/model"
FLAX, TORCH, KERAS = (f"kaggle://someone/model/{x}/2b" for x in ("flax", "pyTorch", "keras"))


@pytest.fixture(scope="module")
def lm():
    return tiny.randomize(tiny.causal_lm(sliding_window_size=2048))


@pytest.fixture(scope="module")
def folders(lm, tmp_path_factory):
    """The files of the model in each form, as a hub holds them: dict of name to bytes."""
    root = tmp_path_factory.mktemp("forms")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(safetensors, "SHARD_BYTES", 30_000)
        for form in export.TARGETS:
            export.export(lm.backbone, lm.preprocessor.tokenizer, root / form, form)
    lm.save_to_preset(root / "keras")
    return {form: loopback.files_of(root / form) for form in (*export.TARGETS, "keras")}


@pytest.fixture
def hub(empty_hub, folders):
    """A hub with the model in the form of transformers, where both clients look, and no cache."""
    empty_hub.files["main"] = folders["transformers"]
    return empty_hub


def check_same(found, lm):
    for one, other in zip(found.weights, lm.weights, strict=True):
        np.testing.assert_array_equal(tiny.numpy(one), tiny.numpy(other))


def are_weights(name):
    return name.endswith(loopback.LARGE) or "params/" in name


def check_whole(cache, hub):
    """Each file of weights that the clients would hand out is one that the hub has."""
    contents = {x for files in hub.files.values() for x in files.values()}
    pointed = [path for path in cache.glob("hf/*/snapshots/*/*") if are_weights(path.name)]
    for marker in cache.glob("kaggle/models/someone/model/pyTorch/2b/2*.complete"):
        pointed += marker.with_suffix("").glob("*.pt")
    assert all(path.read_bytes() in contents for path in pointed)
    return pointed


FORMS = [
    (MODEL_SCOPE, "transformers"),
    (HF, "transformers"),
    (HF, "keras"),
    (HF, "torch"),
    (HF, "flax"),
    (FLAX, "flax"),
    (TORCH, "torch"),
    (KERAS, "keras"),
]


@pytest.mark.parametrize("handle, form", FORMS)
def test_models_load_from_handles(hub, folders, lm, handle, form):
    hub.files["main"] = folders[form]
    found = RGemmaCausalLM.from_preset(handle)
    check_same(found, lm)
    assert found.preprocessor.tokenizer.proto == lm.preprocessor.tokenizer.proto
    hub.sent.clear()
    check_same(RGemmaBackbone.from_preset(handle), lm.backbone)
    assert not hub.sent  # it is in the cache


@backend_independent
@pytest.mark.parametrize("handle, form", FORMS)
def test_tokenizers_load_without_the_weights(hub, folders, lm, handle, form):
    hub.files["main"] = folders[form]
    tokenizer = RGemmaTokenizer.from_preset(handle)
    preprocessor = RGemmaCausalLMPreprocessor.from_preset(handle, sequence_length=8)
    for found in (tokenizer, preprocessor.tokenizer):
        assert found.proto == lm.preprocessor.tokenizer.proto
    assert hub.sent and not any(map(are_weights, hub.sent))


@backend_independent
@pytest.mark.parametrize("form", ["transformers", "keras"])
def test_the_architecture_alone_needs_no_weights(hub, folders, lm, form):
    hub.files["main"] = folders[form]
    found = RGemmaCausalLM.from_preset(HF, load_weights=False)
    assert found.backbone.config.parameter_count == lm.backbone.config.parameter_count
    assert hub.sent and not any(map(are_weights, hub.sent))


@backend_independent
def test_other_forms_beside_it_and_other_models_are_not_fetched(hub, folders):
    hub.files["main"] = {**folders["transformers"], "model.gguf": b"x", "pytorch_model.bin": b"x"}
    RGemmaBackbone.from_preset(HF)
    assert set(hub.sent) == set(folders["transformers"])
    hub.files["v1"] = {"config.json": b'{"model_type": "llama"}', "model.safetensors": b"x"}
    with pytest.raises(ValueError, match="llama"):
        RGemmaBackbone.from_preset(HF, revision="v1")
    assert "model.safetensors" not in hub.sent


@backend_independent
def test_a_built_in_name_stands_for_its_handle(hub, lm):
    hub.name = "google/recurrentgemma-2b"
    check_same(RGemmaCausalLM.from_preset("rgemma_2b_en"), lm)
    assert RGemmaTokenizer.from_preset("rgemma_2b_en").vocabulary_size() == 400


@backend_independent
@pytest.mark.parametrize(
    "handle, old",
    [
        (HF, {"revision": "v1"}),
        (HF, {"revision": loopback.SHA["v1"]}),
        (TORCH, {"revision": "1"}),
        (TORCH, {"revision": 1}),
        (TORCH + "/1", {}),
        (KERAS, {"revision": 1}),
    ],
)
def test_revisions(hub, folders, lm, tmp_path, handle, old):
    form = "transformers" if handle == HF else "torch" if TORCH in handle else "keras"
    hub.files = {"main": {}, "v1": folders[form]}
    check_same(RGemmaBackbone.from_preset(handle, **old), lm.backbone)
    for cls in (RGemmaCausalLM, RGemmaBackbone, RGemmaTokenizer, RGemmaCausalLMPreprocessor):
        with pytest.raises(ValueError, match=r"`revision`.*'v1'.*rgemma_tiny_en"):
            cls.from_preset("rgemma_tiny_en", revision="v1")


@backend_independent
@pytest.mark.parametrize(
    "handle, form, way_out",
    [
        (HF, "transformers", r"licence at http://127.*/someone/model.*login.*HF_TOKEN"),
        (MODEL_SCOPE, "transformers", "private or gated.*modelscope login"),
        (TORCH, "torch", r"licence at https://.*/someone/model/pyTorch/2b.*login.*KAGGLE_KEY"),
    ],
)
def test_a_gated_repository_without_a_token(
    hub, folders, lm, tmp_path, monkeypatch, handle, form, way_out
):
    hub.files["main"] = folders[form]
    hub.is_gated = True
    with pytest.raises(PermissionError, match=f"{handle}.*{way_out}"):
        RGemmaBackbone.from_preset(handle)
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    monkeypatch.setenv("MODELSCOPE_API_TOKEN", "any")
    monkeypatch.setenv("KAGGLE_USERNAME", "any")
    monkeypatch.setenv("KAGGLE_KEY", "any")
    check_same(RGemmaBackbone.from_preset(handle), lm.backbone)


@backend_independent
@pytest.mark.parametrize(
    "handle, revision", [(HF, "v7"), (HF, "3" * 40), (MODEL_SCOPE, "v7"), (TORCH, "7")]
)
def test_a_missing_revision(hub, handle, revision):
    with pytest.raises(FileNotFoundError, match=f"{revision}' of '{handle}'.*See what there is at"):
        RGemmaBackbone.from_preset(handle, revision=revision)


@backend_independent
def test_a_missing_repository(hub):
    for handle, way_out in (
        ("hf://someone/typo", "no 'hf://someone/typo'.*private.*HF_TOKEN"),
        ("modelscope://someone/typo", "no 'modelscope://someone/typo'.*See what there is at"),
        (TORCH.replace("model", "typo"), "no 'kaggle://someone/typo.*See what there is at"),
    ):
        with pytest.raises(FileNotFoundError, match=way_out):
            RGemmaBackbone.from_preset(handle)


@backend_independent
@pytest.mark.parametrize("handle, form", [(HF, "transformers"), (TORCH, "torch")])
@pytest.mark.parametrize("fault", ["cut", "damaged"])
def test_what_is_lost_or_damaged_on_the_way(hub, folders, lm, tmp_path, handle, form, fault):
    """It is told, nothing broken stays, and another try goes on from there."""
    hub.files["main"] = folders[form]
    name = next(name for name in sorted(folders[form]) if are_weights(name))
    setattr(hub, fault, name)
    error, message = {
        "cut": (ConnectionError, "could not be fetched.*run this again"),
        "damaged": (ValueError, "damaged.*deleted.*Run this again"),
    }[fault]
    with pytest.raises(error, match=f"(?s){handle}.*{message}"):
        RGemmaBackbone.from_preset(handle)
    assert len(check_whole(tmp_path, hub)) < sum(map(are_weights, folders[form]))
    setattr(hub, fault, None)
    check_same(RGemmaBackbone.from_preset(handle), lm.backbone)
    assert check_whole(tmp_path, hub)


@backend_independent
def test_without_a_connection_the_cache_serves(hub, lm, monkeypatch):
    RGemmaTokenizer.from_preset(HF)
    address = constants.ENDPOINT
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    RGemmaTokenizer.from_preset(HF)
    with pytest.raises(ConnectionError, match=f"{HF}.*Check the connection"):
        RGemmaBackbone.from_preset(HF)
    monkeypatch.setattr(constants, "ENDPOINT", address)
    RGemmaBackbone.from_preset(HF)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    check_same(RGemmaBackbone.from_preset(HF), lm.backbone)


@backend_independent
@pytest.mark.parametrize(
    "handle, form",
    [
        ("hf://model/of/someone", "'hf://OWNER/NAME'"),
        ("kaggle://someone/model", "'kaggle://OWNER/MODEL/FRAMEWORK/VARIANT'"),
    ],
)
def test_malformed_handles(handle, form):
    with pytest.raises(ValueError, match=f"{handle}.*of the form {form}"):
        RGemmaBackbone.from_preset(handle)


@backend_independent
@pytest.mark.parametrize(
    "handle, package", [("modelscope://someone/model", "modelscope"), (HF, "huggingface_hub")]
)
def test_a_client_that_is_not_installed(monkeypatch, handle, package):
    for name in [package, *sys.modules]:
        if name.split(".")[0] == package:
            monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ImportError, match=f"{handle}.*pip install {package}"):
        RGemmaBackbone.from_preset(handle)


@backend_independent
def test_a_token_that_may_not_read_it(hub, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_any")
    hub.forbidden = "model.safetensors.index.json"
    with pytest.raises(PermissionError, match=f"(?s){HF}.*token in use.*settings/tokens"):
        RGemmaBackbone.from_preset(HF)


@backend_independent
def test_damaged_files_do_not_stay_when_the_connection_is_lost_too(hub, folders, lm, tmp_path):
    hub.damaged, hub.cut = sorted(filter(are_weights, folders["transformers"]))[:2]
    with pytest.raises(ValueError, match="damaged"):
        RGemmaBackbone.from_preset(HF)
    hub.damaged = hub.cut = None
    check_same(RGemmaBackbone.from_preset(HF), lm.backbone)
    assert check_whole(tmp_path, hub)


@backend_independent
def test_what_a_stopped_call_could_not_check_is_checked_by_the_next(
    hub, folders, lm, tmp_path, monkeypatch
):
    hub.damaged = next(filter(are_weights, sorted(folders["transformers"])))

    def stop(*args):
        if any(are_weights(path.name) for path in tmp_path.rglob("snapshots/**/*")):
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("keras_rgemma.checkpoints.hub.check_new_files", stop)
        RGemmaBackbone.from_preset(HF)
    hub.damaged = None
    with pytest.raises(ValueError, match=r"damaged.*deleted"):
        RGemmaBackbone.from_preset(HF)
    check_same(RGemmaBackbone.from_preset(HF), lm.backbone)
    assert check_whole(tmp_path, hub)


@backend_independent
def test_a_file_is_hashed_once(hub, folders, monkeypatch):
    hashed = []

    def listed(blob, hash_like=cache._hash_like):
        hashed.append(blob.name)
        return hash_like(blob)

    monkeypatch.setattr(cache, "_hash_like", listed)
    for _ in range(2):
        RGemmaCausalLM.from_preset(HF)
    assert len(hashed) == len(set(hashed)) == len(folders["transformers"])


@backend_independent
def test_a_repository_of_something_else_is_not_fetched(hub):
    hub.files["main"] = {"README.md": b"x", "model.gguf": b"x" * 100}
    with pytest.raises(ValueError, match=r"neither config\.json nor.*model\.gguf"):
        RGemmaBackbone.from_preset(HF)
    assert "model.gguf" not in hub.sent
