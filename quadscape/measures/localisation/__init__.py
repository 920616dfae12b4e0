"""How few weights an eigenvector lives in."""
