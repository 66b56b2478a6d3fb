"""Methods that no user names: other parts of the package use them."""
