"""The path of a run embedded into a plane by PCA, UMAP and an autoencoder, and how far each can be trusted."""
