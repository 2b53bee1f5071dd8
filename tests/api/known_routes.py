"""What the routes say of themselves."""

from __future__ import annotations

from api.app import all_routes

ROUTES = [route for routes in all_routes() for route in routes.by_method.values()]
WORK = {route.path for route in ROUTES if route.computes}
POSTS = {route.path for route in ROUTES if route.method == "POST"}
