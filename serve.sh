#!/usr/bin/env bash
# Sets up on the first run, then serves on http://0.0.0.0:8000.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./serve.sh [uvicorn flags]

Creates .venv with pinned versions if it does not exist yet, then runs
`uvicorn embedding:app --host 0.0.0.0 --port 8000` with any flags you add, e.g.

  ./serve.sh --port 9000 --reload

It serves the models in models/ (./download-model.sh fetches bge-m3). While that
folder is empty, the small all-MiniLM-L6-v2 stands in. Settings are environment
variables: EMBEDDING_MODEL, EMBEDDING_DEVICE, … (see docs/settings.md).

  TORCH_INDEX_URL  where torch comes from (default: PyTorch's CPU wheels;
                   empty: pip's own sources)
  PYTHON           the Python that creates .venv (default: python3)
TEXT
}

for argument in "$@"; do
    case "$argument" in -h | --help) usage; exit 0 ;; esac
done

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/setup_venv.sh
. scripts/setup_venv.sh

setup_venv
options=$("$VENV_PYTHON" scripts/serve_options.py) # as the server will read them, including .env
read -r host port lacks_model <<<"$options"
if [ "$lacks_model" = yes ]; then
    setup_stand_in || echo "warning: the stand-in model could not be fetched" >&2
fi
exec "$VENV_PYTHON" -m uvicorn embedding:app --host "$host" --port "$port" "$@"
