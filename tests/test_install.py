"""What `pip install keras-rgemma` changes where the frameworks are installed for a device already.

pip replaces an installed package only where a requirement does not allow its version. Here the
requirements are followed from pyproject.toml on through the packages of this environment, as pip
follows them; `tests/preinstalled.txt` says what is installed on Colab.
"""

import importlib.metadata
import pathlib
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from backend_independent import backend_independent

pytestmark = backend_independent

ROOT = pathlib.Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
INSTALLED = {
    canonicalize_name(line.partition("==")[0]): line.partition("==")[2].strip()
    for line in (ROOT / "tests" / "preinstalled.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
}
# What KerasHub 0.32 asks for in a newer version: packages of Python alone.
REPLACED = {"keras", "keras-hub", "kagglehub", "kagglesdk"}
FRAMEWORKS = {"jax", "jaxlib", "tensorflow", "tensorflow-text", "torch", "numpy"}


def replaced(requirements, installed):
    """The names of the installed packages that pip replaces, and of those that it adds.

    Args:
        requirements: list of str.
        installed: dict of the name of a package to its version.
    """
    waiting, changed, seen = list(requirements), set(), set()
    while waiting:
        requirement = Requirement(waiting.pop())
        name = canonicalize_name(requirement.name)
        if requirement.marker and not requirement.marker.evaluate({"extra": ""}):
            continue
        if name in installed and requirement.specifier.contains(installed[name], prereleases=True):
            continue
        changed.add(name)
        if name not in seen:
            seen.add(name)
            waiting += importlib.metadata.requires(name) or []
    return changed & set(installed), changed - set(installed)


def test_colab_keeps_what_it_has():
    assert set(INSTALLED) >= FRAMEWORKS
    assert replaced(PROJECT["dependencies"], INSTALLED) == (REPLACED, set())


@pytest.mark.parametrize("extra", ["jax", "tensorflow", "torch"])
def test_an_extra_is_for_machines_without_its_framework(extra):
    """It may ask for a newer one than Colab's, which is for a device that pip knows nothing of."""
    requirements = [*PROJECT["dependencies"], *PROJECT["optional-dependencies"][extra]]
    found, _ = replaced(requirements, {})
    assert found == set()
    assert {Requirement(x).name for x in PROJECT["optional-dependencies"][extra]} == {extra}
    assert not {Requirement(x).name for x in PROJECT["dependencies"]} & FRAMEWORKS - {"numpy"}


def test_a_tensorflow_without_its_text_package_would_be_replaced():
    """`docs/install.md` says what to type there."""
    others = {name: x for name, x in INSTALLED.items() if name != "tensorflow-text"}
    found, new = replaced(PROJECT["dependencies"], others)
    assert "tensorflow" in found and "tensorflow-text" in new


def test_requirements_are_followed():
    assert replaced(["keras>=99"], {"keras": "3.15", "numpy": "2.0.2"})[0] == {"keras"}
    assert replaced(["keras>=3"], {"keras": "3.15"}) == (set(), set())
    assert replaced(["keras; extra == 'x'"], {}) == (set(), set())
