"""Statistics of layer inputs: their file, and the ways to make one."""
