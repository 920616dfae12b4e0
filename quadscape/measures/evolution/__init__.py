"""How does a run move along each eigenvector: into the minimum, and about it?"""
