"""What is lost: errors of weights, outputs of real models, accuracy."""
