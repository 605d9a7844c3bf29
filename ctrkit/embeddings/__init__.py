"""Embedding tables."""

import ctrkit.quiet  # noqa: F401
