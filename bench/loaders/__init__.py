"""What the loaders of folders make of what is written here, family by family."""
