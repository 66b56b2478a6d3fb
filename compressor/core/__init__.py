"""The vocabulary that everything uses; imports nothing of ours."""
