"""What the first minutes on a GPU are made of: parts that run in processes of their own."""
