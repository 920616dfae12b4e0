"""How much of a fluctuation along an eigenvector is that of others, where the eigenvectors are of another iterate?"""
