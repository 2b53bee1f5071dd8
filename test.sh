#!/usr/bin/env bash
# Sets up on the first run, then checks everything: lint, format, types, tests.
set -euo pipefail

usage() {
    cat <<'TEXT'
usage: ./test.sh [pytest arguments]

Creates .venv with pinned versions if it does not exist yet, then runs ruff, mypy
and pytest. tests/browser needs chromium, which is installed if it is missing and
you are root on Debian. With arguments, only pytest runs, with these arguments:

  ./test.sh tests/batcher -x
TEXT
}

for argument in "$@"; do
    case "$argument" in -h | --help) usage; exit 0 ;; esac
done

cd "$(dirname "${BASH_SOURCE[0]}")"
# shellcheck source=scripts/setup_venv.sh
. scripts/setup_venv.sh
# Python compiles what it imports and keeps the result; pip would compile everything, which takes
# minutes.
export PIP_NO_COMPILE=1
unset PYTHONDONTWRITEBYTECODE
setup_venv dev,clients
bin="$(dirname "$VENV_PYTHON")"

# Variables that the shell happens to export must not change what is tested.
unset "${!EMBEDDING_@}" HF_ENDPOINT HF_TOKEN HF_HUB_OFFLINE TRANSFORMERS_OFFLINE
export PATH="$bin:$PATH"
# Several models compute at once here, so a waiting thread must not keep a core busy.
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
# Two files at a time. The tests that set up an environment take longest, so they start first.
exec "$VENV_PYTHON" -m pytest -n 2 --dist loadfile --no-loadscope-reorder tests/delivery tests
