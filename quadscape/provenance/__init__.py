"""What a result follows from: versions of stages, and hashes of the code that can be reached."""
