"""What is known of model families, as data: names, shapes and config.json, no tensors."""
