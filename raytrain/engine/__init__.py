"""The optimizer step on one worker. The only package that imports DeepSpeed."""
