"""How alike are the noise of gradients and the curvature? Whether C commutes with H, and how far it is diagonal."""
