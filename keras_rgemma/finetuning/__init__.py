"""Training a model further: LoRA and its adapters."""
