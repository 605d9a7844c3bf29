"""Logs as JSON, one object a line, on stderr: what happened, to which model and request, never a feature's value."""

import logging
import sys
import traceback
from datetime import UTC, datetime
from typing import Any

import orjson

_OWN = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}
"""Attributes of every record: what else it has was given as ``extra``."""


class JsonFormatter(logging.Formatter):
    """Time, level, event and the record's ``extra``. Of an exception its type and where it was raised: its text may quote a request."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **{key: value for key, value in vars(record).items() if key not in _OWN},
        }
        if record.exc_info and record.exc_info[0] is not None:
            line["exception"] = record.exc_info[0].__name__
            line["at"] = [f"{frame.filename}:{frame.lineno}" for frame in traceback.extract_tb(record.exc_info[2])[-8:]]
        return orjson.dumps(line, default=str).decode()


def logging_config() -> dict[str, Any]:
    """For ``logging.config.dictConfig``: uvicorn's loggers and the service's own, all as JSON."""
    loggers = {name: {"handlers": ["stderr"], "level": "INFO", "propagate": False} for name in ("uvicorn", "ctrkit.serving")}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": JsonFormatter}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "loggers": {**loggers, "uvicorn.error": {"level": "INFO"}},
    }


class AccessLog:
    """One line a request. Lines are written together, some times a second: a write a request costs more than a small model."""

    def __init__(self) -> None:
        self._lines: list[bytes] = []

    def add(self, line: dict[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        self._lines.append(orjson.dumps({"time": now, "level": "info", "event": "request", **line}, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        lines, self._lines = self._lines, []
        if lines:
            sys.stderr.write(b"".join(lines).decode())
            sys.stderr.flush()
