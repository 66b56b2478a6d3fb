"""The plan carried out: tensors cut into blocks, workers, surveys, shards, archives."""
