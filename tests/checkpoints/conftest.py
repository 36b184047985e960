"""Fixtures for tests of hubs."""

import kagglesdk.kaggle_env
import modelscope_hub
import pytest
from huggingface_hub import constants

from checkpoints import loopback

TOKENS = (
    "HF_TOKEN",
    "MODELSCOPE_API_TOKEN",
    "KAGGLE_USERNAME",
    "KAGGLE_KEY",
    "KAGGLE_API_TOKEN",
)


@pytest.fixture
def empty_hub(tmp_path, monkeypatch):
    """A hub without files, where the clients of all hubs look, and no cache."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
    monkeypatch.setattr(constants, "HF_HUB_ETAG_TIMEOUT", 60)
    monkeypatch.setenv("KAGGLEHUB_CACHE", str(tmp_path / "kaggle"))
    for name in TOKENS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MODELSCOPE_CACHE", str(tmp_path / "modelscope"))
    hub = loopback.Hub(main={})
    with loopback.serve(hub) as address:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setenv("MODELSCOPE_ENDPOINT", address)
        modelscope_hub.set_default_config(None)  # read again from the environment
        url = address + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url)
        production = kagglesdk.kaggle_env.KaggleEnv.PROD
        monkeypatch.setitem(kagglesdk.kaggle_env._env_to_endpoint, production, address)
        yield hub
