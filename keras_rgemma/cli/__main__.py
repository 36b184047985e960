"""Runs `python -m keras_rgemma.cli`, the same as `keras-rgemma`."""

import sys

from keras_rgemma.cli import main

sys.exit(main())
