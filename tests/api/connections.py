"""Requests as bare connections: a client that leaves closes its own, one that is slow has not sent
all of its body yet."""

from __future__ import annotations

import json
import socket
from typing import Any
from urllib.parse import urlsplit


def send(url: str, body: Any, path: str = "/api/embed") -> socket.socket:
    """A request whose answer nobody reads yet."""
    content = json.dumps(body).encode()
    connection = send_head(url, len(content), path)
    connection.sendall(content)
    return connection


def send_head(url: str, num_bytes: int, path: str = "/api/embed") -> socket.socket:
    """A request whose body is still to come."""
    parts = urlsplit(url)
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {num_bytes}\r\n\r\n"
    connection = socket.create_connection((parts.hostname, parts.port), timeout=60)
    connection.sendall(head.encode())
    return connection
