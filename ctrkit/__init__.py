"""ctrkit: from a raw click log to predictions over HTTP."""

__version__ = "0.1.0"
