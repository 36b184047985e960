"""The command that runs the suite, in environments of their own, too: its arguments and sources."""

import sys

import pytest
from packaging.requirements import Requirement

import environments
import run
from backend_independent import backend_independent

pytestmark = backend_independent


@pytest.mark.parametrize(
    "arguments, expected",
    [
        ([], (None, [])),
        (["--oldest"], ("oldest", [])),
        (["tests/ops", "-m", "not slow"], (None, ["tests/ops", "-m", "not slow"])),
        (["--newest", "-x", "tests/ops"], ("newest", ["-x", "tests/ops"])),
        (["tests/ops", "--oldest", "-k", "rope"], ("oldest", ["tests/ops", "-k", "rope"])),
        (["--new-first", "--old"], (None, ["--new-first", "--old"])),
    ],
)
def test_what_is_not_ours_goes_to_pytest(arguments, expected):
    assert run.parse(arguments) == expected


def test_the_newest_are_not_the_oldest():
    with pytest.raises(SystemExit):
        run.parse(["--newest", "--oldest"])


def test_every_backend_runs_what_is_asked_for():
    assert run.jobs(["tests/ops"]) == [(backend, ["tests/ops"]) for backend in run.BACKENDS]


def test_upper_bounds_are_overridden_and_references_stay():
    given = ["keras>=3.15,<3.16", "numpy>=1.26", "jax[cpu]>=0.9, <=0.10", "peer==1.0"]
    given += ["x<2; python_version < '3.13'"]
    found = environments.without_upper_bounds(map(Requirement, given))
    assert found == ["keras>=3.15", "jax[cpu]>=0.9", 'x; python_version < "3.13"']


def test_keras_and_keras_hub_have_upper_bounds():
    found = environments.without_upper_bounds(environments.requirements())
    assert {x.partition(">")[0] for x in found} == {"keras", "keras-hub"}
    assert environments.resolution("newest", "file") == ["--upgrade", "--override", "file"]


def test_packages_come_from_where_pip_looks():
    listing = """:env:.find-links='/a'
global.cert='/c.crt'
global.extra-index-url='https://x/simple https://y/simple'
global.find-links='/b'
"""
    settings = environments.pip_settings(listing)
    assert settings["cert"] == ["/c.crt"]
    assert environments.where_pip_looks(settings) == [
        *("--index", "https://x/simple", "--index", "https://y/simple", "--find-links", "/a"),
        *("--index-strategy", "unsafe-best-match"),
    ]
    assert environments.where_pip_looks({}) == []


def test_the_newest_cpu_wheel_of_this_python_is_last(tmp_path):
    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    for version in ("2.9.1+cpu", "2.13.0+cpu", "2.14.0"):
        (tmp_path / f"torch-{version}-{python}-{python}-linux_x86_64.whl").touch()
    (tmp_path / "torch-2.15.0+cpu-cp99-cp99-linux_x86_64.whl").touch()
    (tmp_path / f"torchvision-1.0+cpu-{python}-{python}-linux_x86_64.whl").touch()
    places = [f"file://{tmp_path}", "https://nowhere/wheels"]
    assert environments.cpu_wheels(places) == ["2.9.1+cpu", "2.13.0+cpu"]
