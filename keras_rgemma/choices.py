"""Lists the names that a user of the command chooses from, without the code behind them."""

BACKENDS = ("jax", "tensorflow", "torch")  # of Keras, that this package runs on
FORMATS = ("keras", "transformers", "flax", "torch")  # of checkpoints that are written
DTYPES = ("float32", "float16", "bfloat16")  # of weights that are written
PLAN_TASKS = ("generate", "lora", "qlora", "train")  # that `plan` compiles
PLAN_DTYPES = (*DTYPES, "mixed_bfloat16", "mixed_float16")  # policies of models
PLAN_OPTIMIZERS = ("adamw", "adam", "sgd", "adafactor", "lion", "rmsprop")
REFERENCES = ("recurrentgemma", "transformers")  # that `verify` compares with
