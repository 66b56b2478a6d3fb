"""The methods: one file each, listed by what the package holds."""
