"""Which setting of a family is best on validation data."""
