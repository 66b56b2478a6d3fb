"""From a recipe to files: `plan` says what will be done, and `execution` does it."""
