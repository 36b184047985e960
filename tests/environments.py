"""Environments of their own, with the newest or the oldest versions that the package allows."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tomllib

from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = pathlib.Path(__file__).resolve().parent.parent
KINDS = ("newest", "oldest")


def create(kind):
    """Makes the environment `.venv-newest` or `.venv-oldest` anew, with builds for CPUs.

    On Linux torch comes from PyTorch's index of CPU builds. Where that cannot be reached it comes
    from where pip looks: for "newest" a CPU build in one of its folders (`find-links`) if there is
    one, else PyPI's, which brings some gigabytes of CUDA libraries along.

    Args:
        kind: "newest", each package as new as there is, our own upper bounds overridden; or
            "oldest", the lowest versions that pyproject.toml allows of our direct dependencies.

    Returns:
        `pathlib.Path` of the environment's Python.
    """
    folder = ROOT / f".venv-{kind}"
    python = folder / ("Scripts" if os.name == "nt" else "bin") / "python"
    subprocess.run([sys.executable, "-m", "venv", "--clear", folder], check=True)
    subprocess.run([python, "-m", "pip", "install", "-q", "uv"], check=True)
    settings = pip_settings(output_of(python, "-m", "pip", "config", "list"))
    overrides, constraints = folder / "overrides.txt", folder / "constraints.txt"
    overrides.write_text("\n".join(without_upper_bounds(requirements())))
    wheels = cpu_wheels(settings.get("find-links", ())) if kind == "newest" else []
    constraints.write_text(f"torch=={wheels[-1]}" if wheels else "")
    command = [python, "-m", "uv", "pip", "install", "-q", "--python", python]
    command += [*where_pip_looks(settings), "-e", f"{ROOT}[test]", *resolution(kind, overrides)]
    environment = dict(os.environ)
    for certificates in settings.get("cert", ()):
        environment.setdefault("SSL_CERT_FILE", certificates)
    from_index = subprocess.run([*command, "--torch-backend", "cpu"], env=environment)
    if from_index.returncode:
        print("Not from PyTorch's index of CPU builds; trying where pip looks.", flush=True)
        subprocess.run([*command, "--constraint", constraints], env=environment, check=True)
    return python


def output_of(*command):
    """What a command prints, str."""
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def resolution(kind, overrides):
    """The options of `uv pip install` for a kind, list.

    Args:
        kind: str of `KINDS`.
        overrides: path of a file of requirements without our upper bounds.
    """
    return {
        "newest": ["--upgrade", "--override", overrides],
        "oldest": ["--resolution", "lowest-direct"],
    }[kind]


def requirements():
    """All direct dependencies of the package and its extras, list of `Requirement`."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"].values()
    found = map(Requirement, [*project["dependencies"], *itertools.chain.from_iterable(extras)])
    return [x for x in found if x.name != project["name"]]


def without_upper_bounds(requirements):
    """The requirements that have an upper bound, without it, list of str.

    An exact version, as of a reference to compare with, stays.

    Args:
        requirements: list of `Requirement`.
    """
    found = []
    for requirement in requirements:
        lower = [x for x in requirement.specifier if not x.operator.startswith("<")]
        if len(lower) < len(requirement.specifier):
            bare = Requirement(str(requirement))
            bare.specifier = SpecifierSet(",".join(map(str, lower)))
            found.append(str(bare))
    return found


def pip_settings(listing):
    """What `pip config list` printed, a dict of the name of a setting to a list of its words.

    A setting of an environment variable comes before that of a file, as with pip.
    """
    settings = {}
    for line in sorted(listing.splitlines(), key=lambda line: not line.startswith(":env:")):
        key, _, value = line.partition("=")
        settings.setdefault(key.rpartition(".")[2], value.strip().strip("'\"").split())
    return settings


def where_pip_looks(settings):
    """Options of uv for the places where pip finds packages, list of str.

    Args:
        settings: dict, as of `pip_settings`.
    """
    options = {
        "index-url": "--default-index",
        "extra-index-url": "--index",
        "find-links": "--find-links",
    }
    words = [
        word
        for name, option in options.items()
        for place in settings.get(name, ())
        for word in (option, place)
    ]
    # As pip does, which takes the best of all places and not of the first that has the package.
    return [*words, "--index-strategy", "unsafe-best-match"] if words else []


def cpu_wheels(folders):
    """The versions of torch's CPU builds for this Python in local folders, the newest last."""
    tag = f"-cp{sys.version_info.major}{sys.version_info.minor}-"
    versions = {
        path.name.split("-")[1]
        for folder in folders
        for path in pathlib.Path(folder.removeprefix("file://")).glob("torch-*+cpu-*.whl")
        if tag in path.name
    }
    return sorted(versions, key=Version)


def versions(python):
    """The installed versions of the direct dependencies, dict of name to str."""
    names = {canonicalize_name(x.name) for x in requirements()}
    listing = json.loads(output_of(python, "-m", "pip", "list", "--format", "json"))
    return {x["name"]: x["version"] for x in listing if canonicalize_name(x["name"]) in names}
