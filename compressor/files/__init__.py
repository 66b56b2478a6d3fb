"""Reading and writing weight files. The only place that touches the disk."""
