"""Lists the names that a user of the command chooses from, without the code behind them."""

BACKENDS = ("jax", "tensorflow", "torch")  # of Keras, that this package runs on
FORMATS = ("keras", "transformers", "flax", "torch")  # of checkpoints that are written
DTYPES = ("float32", "float16", "bfloat16")  # of weights that are written
