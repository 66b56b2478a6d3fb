"""The command line: parsing, and the mapping of errors to exit codes. One short file a command."""
