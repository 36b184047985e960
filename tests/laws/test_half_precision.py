"""Training in bfloat16 stays finite; `half_precision.py` shows it for as many steps as wanted."""

import pytest

from laws.half_precision import train


@pytest.mark.slow
def test_steps_in_bfloat16_are_finite_and_learn():
    first, last = train(20, decay_of_one=True)
    assert last < first - 0.3
