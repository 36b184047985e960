"""Enables, merges, saves and loads LoRA on a whole backbone, in files of its own and PEFT's."""
