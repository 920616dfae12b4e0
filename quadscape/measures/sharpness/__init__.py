"""The largest eigenvalue through training, beside what stability allows and what batches see."""
