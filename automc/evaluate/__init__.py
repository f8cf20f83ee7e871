"""Evaluation: the data, the score, the model, and what is wrong with any of them."""
