"""LoRA on a linear layer: a product of low rank beside that of its kernel, kept apart in files."""

import contextlib

import numpy as np
from keras import ops

FACTORS = ("lora_kernel_a", "lora_kernel_b")
_ALPHA = "lora_alpha"
# Modes of quantization that look at what goes through a layer.
CALIBRATED = ("gptq", "awq")


class LoRA:
    """What the linear layers of the blocks do beyond Keras' own; comes before `Dense` in bases.

    With LoRA (arXiv 2106.09685, section 4.1), `y = x W + (alpha / rank) (x A) B`. Keras adds A B to
    W before the product instead: that copies W and computes its gradient in every step. Keras also
    saves the sum alone, and forgets A and B when it loads: training cannot go on from there.
    """

    # What is called before a file brings LoRA, so that the model below it is frozen.
    before_loaded_lora = None
    # Why a file was refused last, an exception: Keras' own report may have another one.
    refusal = None

    def call(self, inputs, training=None):
        if not self.lora_enabled:
            return super().call(inputs, training)
        with self._without_lora():
            x = super().call(inputs, training)
        return x + self._low_rank(inputs)

    def quantized_call(self, inputs, *args, **kwargs):
        if self._awaits_calibration():
            # Keras 3.15 looks at what `call` gets, but does not come there: it would see nothing.
            # With gradients, what it sees would keep what PyTorch needs for them.
            return self.call(ops.stop_gradient(inputs))
        if not self.lora_enabled:
            return super().quantized_call(inputs, *args, **kwargs)
        with self._without_lora():
            x = super().quantized_call(inputs, *args, **kwargs)
        return x + self._low_rank(inputs)

    def _awaits_calibration(self):
        mode = self.quantization_mode
        return mode in CALIBRATED and not getattr(self, f"is_{mode}_calibrated")

    def _low_rank(self, inputs):
        # In a model of half precision Keras casts no variable: both have its dtype but A and B.
        a = ops.cast(self.lora_kernel_a, self.compute_dtype)
        b = ops.cast(self.lora_scale * self.lora_kernel_b, self.compute_dtype)
        return ops.matmul(self._product(inputs, a), b)

    @contextlib.contextmanager
    def _without_lora(self):
        """Lets Keras' methods take this for a layer without LoRA."""
        enabled, self.lora_enabled = self.lora_enabled, False
        try:
            yield
        finally:
            self.lora_enabled = enabled

    def linear_map_parts(self):
        import types

        v = {"kernel": self._kernel}
        if self.bias is not None:
            v["bias"] = self.bias
        if self.lora_enabled:
            v |= {n: getattr(self, n) for n in FACTORS}
        return types.SimpleNamespace(
            variables=v,
            quantization_mode=self.quantization_mode,
            lora_scale=self.lora_scale if self.lora_enabled else None,
        )

    def linear_map(self):
        return self.quantized_call

    def quantize(self, mode=None, type_check=True, config=None):
        # Keras quantizes no subclass, unless it is told that it is one of its own kind.
        super().quantize(mode, type_check=False, config=config)

    @property
    def lora_scale(self):
        """What the product of A and B is multiplied by, float."""
        return self.lora_alpha / self.lora_rank

    def enable_lora(self, rank, lora_alpha=None, **kwargs):
        super().enable_lora(rank, lora_alpha, **kwargs)
        self.trainable = True
        for variable in self._trainable_variables:
            variable.trainable = False
        for name in FACTORS:
            getattr(self, name).trainable = True

    def lora_values(self):
        """A, B and alpha, as `assign_lora` takes them; arrays of NumPy and a float."""
        a, b = (ops.convert_to_numpy(getattr(self, name)) for name in FACTORS)
        return a, b, float(self.lora_alpha)

    def assign_lora(self, a, b, alpha):
        """Gives A and B of the layer's rank values, and what their product counts."""
        self.lora_kernel_a.assign(a)
        self.lora_kernel_b.assign(b)
        self.lora_alpha = alpha

    def disable_lora(self):
        """Takes A and B away. The layer is what it was before `enable_lora`."""
        self._tracker.unlock()
        for name in FACTORS:
            self._untrack_variable(getattr(self, name))
            setattr(self, name, None)
        self._tracker.lock()
        self.lora_enabled, self.lora_rank, self.lora_alpha = False, None, None
        # On TensorFlow `self.trainable = True` does nothing where it is True already.
        for variable in self._trainable_variables:
            variable.trainable = True

    def merge_lora(self):
        """Adds A B to the kernel, which a quantized layer then rounds anew, and takes them away."""
        if self.quantization_mode is None:
            factors = (ops.convert_to_numpy(getattr(self, name)) for name in FACTORS)
            self._add(*factors, self.lora_scale)
        else:
            kernel, scale, zero = self._get_kernel_with_merged_lora()
            self._kernel.assign(kernel)
            self.kernel_scale.assign(scale)
            if zero is not None:
                self.kernel_zero.assign(zero)
        self.disable_lora()

    # === Files ===

    def save_own_variables(self, store):
        if self._awaits_calibration():
            raise ValueError(
                f"{self.path!r} was to be quantized by {self.quantization_mode}, which failed. "
                "Load the model as it was before."
            )
        with self._without_lora():
            super().save_own_variables(store)
        if self.lora_enabled:
            for name in FACTORS:
                store[name] = getattr(self, name)
            store[_ALPHA] = np.array(self.lora_alpha, "float32")

    def _get_kernel_with_merged_lora(self):
        kernel, scale, zero = super()._get_kernel_with_merged_lora()
        if zero is None and self.quantization_mode in CALIBRATED:
            zero = self.kernel_zero  # without which Keras 3.15 saves what it cannot load
        return kernel, scale, zero

    def load_own_variables(self, store):
        """Loads kernel and bias, and A and B.

        In a layer without LoRA they are added to the kernel. One that is quantized would have to
        round that sum: there LoRA is enabled.

        Raises:
            ValueError: A and B of another rank than the layer's.
        """
        keys = store.keys()
        stored = {key: store[key] for key in keys}
        factors = [np.array(stored.pop(name)) for name in FACTORS if name in stored]
        alpha = float(np.array(stored.pop(_ALPHA))) if factors else None
        rank = factors[1].shape[0] if factors else None
        if not self.lora_enabled:
            super().load_own_variables(stored)
            if factors and self.quantization_mode:
                if self.before_loaded_lora:
                    self.before_loaded_lora()
                self.enable_lora(rank)
                self.assign_lora(*factors, alpha)
            elif factors:
                self._add(*factors, alpha / rank)
            return
        if factors and rank != self.lora_rank:
            self.refusal = ValueError(
                f"The file has LoRA of rank {rank} for {self.path!r}, and the model of rank "
                f"{self.lora_rank}. Call `enable_lora({rank})`, or load it before `enable_lora`: "
                "then it is merged."
            )
            raise self.refusal
        # Keras makes A zero, too, and no gradient would reach either of them again.
        initial = ops.convert_to_numpy(self.lora_kernel_a), np.zeros(self.lora_kernel_b.shape)
        super().load_own_variables(stored)
        self.assign_lora(*(factors or initial), self.lora_alpha if alpha is None else alpha)

    def _add(self, a, b, scale):
        kernel = ops.convert_to_numpy(self._kernel.value).astype("float32")
        self._kernel.assign(kernel + scale * (a @ b))


def lora_layers(model):
    """The layers of a model with LoRA, list."""
    layers = model._flatten_layers()
    return [layer for layer in layers if isinstance(layer, LoRA) and layer.lora_enabled]
