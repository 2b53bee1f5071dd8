#!/usr/bin/env bash
# Sets up on the first run, then checks everything: lint, format, types, tests.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./test.sh [pytest arguments]

Makes .venv with pinned versions if it is not there yet, then runs ruff, mypy and
pytest. tests/browser needs chromium: as root on Debian, it is installed if it is
missing. With arguments, only pytest runs, with them:

  ./test.sh tests/batcher -x
TEXT
}

for argument in "$@"; do
    case "$argument" in -h | --help) usage; exit 0 ;; esac
done

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/setup_venv.sh
. scripts/setup_venv.sh
# Python compiles what is imported and keeps it; pip would compile all of it, for minutes.
export PIP_NO_COMPILE=1
unset PYTHONDONTWRITEBYTECODE
setup_venv dev,clients
bin="$(dirname "$VENV_PYTHON")"

# What a shell happens to export must not change what is tested.
unset "${!EMBEDDING_@}" HF_ENDPOINT HF_TOKEN HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
export PATH="$bin:$PATH"
# Several models compute at once here: a thread that waits must not keep a core from the others.
export OMP_WAIT_POLICY="${OMP_WAIT_POLICY:-passive}"

if [ "$#" -gt 0 ]; then
    exec "$VENV_PYTHON" -m pytest "$@"
fi
# shellcheck source=scripts/setup_browser.sh
. scripts/setup_browser.sh
setup_browser
ruff check .
ruff format --check .
mypy
# Two at a time, file by file; those that set up an environment take longest and begin first.
exec "$VENV_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/delivery tests
