"""The loss on planes through a checkpoint."""
