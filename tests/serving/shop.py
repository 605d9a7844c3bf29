"""Towers around vectors that a test knows, and how tests ask them."""

import hashlib
from pathlib import Path
from typing import Any

import httpx

from ctrkit.bundle import FileEntry
from ctrkit.retrieval.bundle import MANIFEST_FILE, RetrievalManifest
from pipelines.bench.synthetic_towers import clustered

ITEMS, WIDTH = 400, 8
VECTORS = clustered(ITEMS, WIDTH, 12, seed=3)


def ask(address: str, path: str = "shop", **body: Any) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/models/{path}:recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def items(address: str, **body: Any) -> list[Any]:
    (one,) = ask(address, **body)["recommendations"]
    return [entry["item"] for entry in one["items"]]


def in_order(user: int, allowed: Any) -> list[int]:
    """The allowed items, the nearest to a liked one first."""
    return sorted(allowed, key=lambda item: -float(VECTORS[item] @ VECTORS[user]))


def refused(address: str, status: int, path: str = "shop:recommend", **body: Any) -> str:
    answer = httpx.post(f"{address}/v1/models/{path}", json=body)
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    return detail if isinstance(detail, str) else f"{'.'.join(str(part) for part in detail[0]['loc'])}: {detail[0]['msg']}"


def change(address: str, verb: str, items: list[Any]) -> dict[str, Any]:
    answer = httpx.post(f"{address}/v1/models/shop/items:{verb}", json={"items": items})
    assert answer.status_code == 200, answer.text
    return answer.json()


def rewrite(folder: Path, **changed: Any) -> None:
    """Changes the manifest of towers and takes their files' checksums anew."""
    manifest = RetrievalManifest.model_validate_json((folder / MANIFEST_FILE).read_bytes())
    contents = {name: (folder / name).read_bytes() for name in manifest.files}
    files = {name: FileEntry(sha256=hashlib.sha256(content).hexdigest(), bytes=len(content)) for name, content in contents.items()}
    (folder / MANIFEST_FILE).write_text(manifest.model_copy(update={**changed, "files": files}).model_dump_json())
