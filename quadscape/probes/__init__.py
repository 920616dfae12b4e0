"""What is measured in the eigenbasis: each module has `measure`, which returns typed tables."""
