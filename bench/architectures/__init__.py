"""What is written down of model families, beside what libraries say of them."""
