"""The page at ``/ui``: files as they are, no build step."""

from pathlib import Path

from fastapi import APIRouter, HTTPException
from fastapi.responses import FileResponse

FOLDER = Path(__file__).with_name("ui")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'unsafe-inline'; connect-src 'self'; frame-ancestors 'none'",
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
}
SCRIPTS = tuple(sorted(script.name for script in FOLDER.glob("*.js")))
PATHS = ("/ui", *(f"/ui/{name}" for name in SCRIPTS))
router = APIRouter(include_in_schema=False)


@router.get("/ui")
async def page() -> FileResponse:
    return FileResponse(FOLDER / "index.html", headers=HEADERS)


@router.get("/ui/{name}")
async def script(name: str) -> FileResponse:
    if name not in SCRIPTS:
        raise HTTPException(404, f"The page has no file '{name[:100]}'")
    return FileResponse(FOLDER / name, headers=HEADERS, media_type="text/javascript")
