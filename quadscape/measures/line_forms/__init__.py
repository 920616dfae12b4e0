"""Which form lines have at best, and how the loss grows beyond their quadratic radius."""
