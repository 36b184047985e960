"""Fetches repositories of hubs into local folders, with each hub's own client and cache."""

import functools
import glob
import pathlib
from collections.abc import Callable, Sequence

from keras_rgemma.checkpoints import adapter, deepmind_flax, huggingface
from keras_rgemma.checkpoints.cache import check_new_files
from keras_rgemma.checkpoints.folder import hint_of_loadable_inside
from keras_rgemma.config import check_count
from keras_rgemma.files import read_json
from keras_rgemma.keras_internals.hubs import hugging_face_blobs, parse_kaggle_handle
from keras_rgemma.types import StrPath

# The parts of a repository that can be asked for.
TOKENIZER, CONFIG, WEIGHTS = "tokenizer", "config", "weights"
# Patterns of file names, for repositories that hold their weights in several formats.
_SMALL_FILES = ("*.json", "*.model", "assets/*")
# The formats of weights: one of the next line is fetched if there is none of the lines before.
_WEIGHT_FILES = (
    ("model*.safetensors", "model*.weights.h5", "task.weights.h5"),
    ("pytorch_model*.bin",),
)
_ADAPTER_FILES = ((adapter.WEIGHTS,), (adapter.PICKLED,))


def fetch(
    handle: str, revision: str | None = None, part: str = WEIGHTS, subfolder: str | None = None
) -> str:
    """Fetches a repository into the cache of its hub, if it is not there, and returns its folder.

    Args:
        handle: str, `hf://OWNER/NAME`, `modelscope://OWNER/NAME` or
            `kaggle://OWNER/MODEL/FRAMEWORK/VARIANT`, with `/VERSION` or without.
        revision: str, a branch, a tag or a commit; on Kaggle the number of a version. None for the
            newest.
        part: `TOKENIZER`, `CONFIG` or `WEIGHTS`. Files that this part does not need are left out
            where the hub allows that.
        subfolder: str, the folder of the model in the repository; None for the repository.

    Returns:
        str, the folder; or a handle that KerasHub fetches.

    Raises:
        PermissionError: the repository is gated or private.
        FileNotFoundError: the repository, the revision or the subfolder does not exist.
        ConnectionError: the hub cannot be reached, or the connection was lost.
        ValueError: the handle is malformed, the model is of another kind, or a file came damaged
            and was deleted.
        ImportError: the client of the hub is not installed.
    """
    scheme, _, name = handle.partition("://")
    if scheme not in _SNAPSHOTS:
        if scheme == "kaggle":
            handle = _from_kaggle(handle, name, revision, part)
        elif revision is not None:
            raise ValueError(
                f"`revision` is for handles of {[*_SNAPSHOTS, 'kaggle']}. Received: {revision!r} "
                f"with {handle!r}."
            )
        if subfolder is None:
            return handle
        if "://" in handle:  # KerasHub fetches it
            raise ValueError(
                f"A Keras preset at {handle!r} has no subfolders. Received: "
                f"subfolder={subfolder!r}."
            )
        return str(inside(handle, subfolder))
    snapshot = functools.partial(_SNAPSHOTS[scheme], handle, name, revision)
    root = snapshot(_SMALL_FILES)
    folder = inside(root, subfolder)
    config = folder / huggingface.CONFIG
    is_adapter = adapter.is_adapter(folder)
    if part == TOKENIZER or (part == CONFIG and (is_adapter or config.is_file())):
        return str(folder)
    if is_adapter:
        return _with_weights(snapshot, handle, folder, root, _ADAPTER_FILES)
    if not config.is_file():  # one of DeepMind's formats, whose weights tell the architecture
        if hint := hint_of_loadable_inside(folder, False):
            raise ValueError(f"{handle!r} holds folders of models, and no model itself.{hint}")
        if scheme == "hf":
            _check_is_deepminds(handle, name, revision)
        return str(inside(snapshot(None), subfolder))
    contents = read_json(config)
    if huggingface.is_config(contents):
        huggingface.config_from(contents)  # before gigabytes of another model are fetched
    return _with_weights(snapshot, handle, folder, root, _WEIGHT_FILES)


def inside(root: StrPath, subfolder: str | None) -> pathlib.Path:
    """Returns the path of a subfolder, or of the folder itself for None.

    Args:
        root: str or path of a folder.
        subfolder: str or None.

    Raises:
        ValueError: the subfolder is no plain relative path.
        FileNotFoundError: there is no such subfolder.
    """
    root = pathlib.Path(root)
    if subfolder is None:
        return root
    relative = pathlib.PurePosixPath(str(subfolder))
    if relative.is_absolute() or ".." in relative.parts or "\\" in str(subfolder):
        raise ValueError(
            f"`subfolder` must be the path of a folder inside of {str(root)!r}. Received: "
            f"{subfolder!r}."
        )
    if not (root / relative).is_dir():
        raise FileNotFoundError(
            f"There is no folder {str(subfolder)!r} in {str(root)!r}."
            f"{hint_of_loadable_inside(root, False)}"
        )
    return root / relative


def _with_weights(
    snapshot: Callable[[Sequence[str]], str],
    handle: str,
    folder: pathlib.Path,
    root: str,
    alternatives: Sequence[Sequence[str]],
) -> str:
    """Fetches the weights of a folder in the first format that is there; returns the folder, str.

    Args:
        snapshot: function of patterns that fetches.
        handle: str.
        folder: `pathlib.Path` of the model in the cache.
        root: str, the path of the repository in the cache.
        alternatives: sequence of sequences of patterns of names, one a format.
    """
    prefix = glob.escape(folder.relative_to(root).as_posix()) + "/"
    prefix = "" if prefix == "./" else prefix
    for patterns in alternatives:
        snapshot((*_SMALL_FILES, *(prefix + x for x in (*_SMALL_FILES, *patterns))))
        if any(any(folder.glob(pattern)) for pattern in patterns):
            _check_parts(handle, folder)
            return str(folder)
    raise ValueError(
        f"{handle!r} holds a config, but no weights in a file such as "
        f"{', '.join(patterns[0] for patterns in alternatives)}."
        f"{hint_of_loadable_inside(folder, False)}"
    )


def _check_parts(handle: str, folder: StrPath) -> None:
    """Raises ConnectionError if a part of the weights is missing that their index names.

    Without a connection huggingface_hub takes the files in its cache for all, before version 1.20.
    """
    for index in pathlib.Path(folder).glob("*.safetensors.index.json"):
        names = read_json(index).get("weight_map")
        names = set(map(str, names.values())) if isinstance(names, dict) else ()
        missing = [name for name in names if not (index.parent / name).exists()]
        if missing:
            raise _lost(handle, FileNotFoundError(f"{sorted(missing)} are missing."))


def _from_hugging_face(
    handle: str, name: str, revision: str | None, patterns: Sequence[str] | None
) -> str:
    try:
        from huggingface_hub import constants, errors, snapshot_download
    except ImportError as error:
        raise _client_missing(handle, "huggingface_hub") from error
    at = f"{constants.ENDPOINT}/{name}"
    try:
        blobs = hugging_face_blobs(name)
        folder = snapshot_download(name, revision=revision, allow_patterns=patterns)
    except errors.HFValidationError as error:
        raise ValueError(f"{handle!r} is not of the form 'hf://OWNER/NAME'. {error}") from error
    except errors.GatedRepoError as error:
        raise PermissionError(
            f"{handle!r} is gated. Accept its licence at {at}, then log in with "
            "`huggingface_hub.login()`, or set HF_TOKEN to a token of that account."
        ) from error
    except errors.RepositoryNotFoundError as error:
        raise FileNotFoundError(
            f"There is no {handle!r} at {at}, or it is private. Check the name; for a private "
            "repository log in with `huggingface_hub.login()`, or set HF_TOKEN."
        ) from error
    except errors.RevisionNotFoundError as error:
        raise _no_revision(handle, revision, f"{at}/tree/main") from error
    except Exception as error:  # of the HTTP library, another one in each major version
        check_new_files(handle, blobs)
        if _is_local(error):
            raise
        if _status(error) in (401, 403):
            raise PermissionError(
                f"{handle!r} is not open to the token in use. It may have expired, or lack the "
                f"permission to read gated repositories: see {constants.ENDPOINT}/settings/tokens. "
                f"{error}"
            ) from error
        raise _lost(handle, error) from error
    check_new_files(handle, blobs)
    return folder


def _check_is_deepminds(handle: str, name: str, revision: str | None) -> None:
    """Raises ValueError for another repository, before gigabytes of it are fetched."""
    from huggingface_hub import HfApi

    try:
        files = [
            file.rsplit("/", 1)[-1] for file in HfApi().list_repo_files(name, revision=revision)
        ]
    except Exception:  # without a connection the cache may still serve
        return
    if not any(file in deepmind_flax.MARKS or file.endswith(".pt") for file in files):
        raise ValueError(
            f"{handle!r} holds neither {huggingface.CONFIG} nor weights in a format of DeepMind's. "
            f"Its files begin with {files[:8]}."
        )


def _from_model_scope(
    handle: str, name: str, revision: str | None, patterns: Sequence[str] | None
) -> str:
    try:
        from modelscope import snapshot_download
    except ImportError as error:
        raise _client_missing(handle, "modelscope") from error
    try:
        return snapshot_download(name, revision=revision, allow_patterns=patterns)
    except Exception as error:  # it checks hashes itself, and names faults with many classes
        if _is_local(error):
            raise
        status = _status(error)
        if status in (401, 403):
            raise PermissionError(
                f"{handle!r} is private or gated. Log in with `modelscope login`. {error}"
            ) from error
        if status == 404:
            raise _no_revision(handle, revision, f"https://modelscope.cn/models/{name}") from error
        raise _lost(handle, error) from error


_SNAPSHOTS = {"hf": _from_hugging_face, "modelscope": _from_model_scope}


def _from_kaggle(handle: str, name: str, revision: str | None, part: str) -> str:
    import kagglehub
    from kagglehub import exceptions

    form = "'kaggle://OWNER/MODEL/FRAMEWORK/VARIANT', with '/VERSION' or without"
    try:
        parsed = parse_kaggle_handle(name)
        if revision is not None:
            parsed = parsed.with_version(check_count("revision", int(revision)))
    except ValueError as error:
        given = handle if revision is None else f"{handle}/{revision}"
        raise ValueError(f"{given!r} is not of the form {form}.") from error
    if parsed.framework.lower() == "keras":  # a preset, of which KerasHub fetches what it needs
        return f"kaggle://{parsed}"
    at = parsed.with_version(0).to_url()  # which is that of the newest
    try:
        if part == TOKENIZER:
            file = kagglehub.model_download(str(parsed), huggingface.TOKENIZER)
            return str(pathlib.Path(file).parent)
        return kagglehub.model_download(str(parsed))
    except exceptions.DataCorruptionError as error:  # deletes the file
        raise ValueError(
            f"A file of {handle!r} came damaged: the hash is not the one that the hub names. It "
            f"was deleted. Run this again to fetch it anew. {error}"
        ) from error
    except Exception as error:  # of the HTTP library, and of kagglehub's own
        if _is_local(error):
            raise
        status = _status(error)
        if status in (401, 403) or isinstance(error, exceptions.UnauthenticatedError):
            raise PermissionError(
                f"{handle!r} needs your consent, or does not exist. Accept its licence at {at}, "
                "then log in with `kagglehub.login()`, or set KAGGLE_USERNAME and KAGGLE_KEY."
            ) from error
        if status == 404:
            raise _no_revision(handle, revision, at) from error
        raise _lost(handle, error) from error


def _status(error: BaseException | None) -> int | None:
    """Returns the HTTP status of an error or of its cause, or None."""
    while error is not None:
        response = getattr(error, "response", None)
        status = getattr(response, "status_code", getattr(error, "status_code", None))
        if status is not None:
            return status
        error = error.__cause__


def _client_missing(handle: str, package: str) -> ImportError:
    return ImportError(
        f"{handle!r} is fetched with {package}. Install it with `pip install {package}`."
    )


def _no_revision(handle: str, revision: str | None, at: str) -> FileNotFoundError:
    what = f"revision '{revision}' of {handle!r}" if revision else f"{handle!r}"
    return FileNotFoundError(f"There is no {what}. See what there is at {at}.")


def _is_local(error: BaseException) -> bool:
    """Checks whether an error comes from this machine, such as a full disk."""
    return isinstance(error, OSError) and error.errno is not None


def _lost(handle: str, error: BaseException) -> ConnectionError:
    return ConnectionError(
        f"{handle!r} could not be fetched: {type(error).__name__}: {error} Check the connection "
        "and run this again; what has come whole is kept."
    )
