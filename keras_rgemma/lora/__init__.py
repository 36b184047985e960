"""LoRA on a whole backbone: enabling, merging, adapter files, and PEFT's format."""
