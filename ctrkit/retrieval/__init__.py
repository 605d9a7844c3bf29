"""Retrieval: which few of all items are for this user? Two towers, self-supervision, cold starts, baselines, an index."""
