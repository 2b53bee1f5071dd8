"""The app (`uvicorn embedding:app`), the command `embedding`, and the Python door.

Importing this module is cheap: torch is imported when a model is loaded.
"""

from __future__ import annotations

from api.app import create_app
from cli.main import main
from serving.local import AsyncLocalServer, LocalServer

__all__ = ["AsyncLocalServer", "LocalServer", "app", "create_app", "main"]

app = create_app()

if __name__ == "__main__":
    main()
