"""What tests share: the laws, runs of the command, files to damage, small models."""
