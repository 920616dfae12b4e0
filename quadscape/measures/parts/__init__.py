"""Gauss–Newton part and remainder."""
