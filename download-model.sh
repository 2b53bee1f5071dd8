#!/usr/bin/env bash
# Downloads the files that serving a model needs into models/<name>. This script finds a suitable
# Python; scripts/fetch_model.py does the rest.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: ./download-model.sh [MODEL] [OPTIONS]

Downloads a model into models/<name>: its weights, tokenizer and settings, and
nothing else. If the download is interrupted, run the same command again to resume.
The server does not see a model until it is complete.

MODEL  org/name, or one of these short names in any case (default: bge-m3):
       bge-m3  bge-{small,base,large}-{en,zh}-v1.5  bge-reranker-{base,large,v2-m3}
       Qwen3-Embedding-{0.6B,4B,8B}  Qwen3-Reranker-{0.6B,4B,8B}  all-MiniLM-L6-v2

  --source HUB     huggingface (default) or modelscope
  --revision NAME  branch, tag or commit (default: the hub's default branch)
  --dir DIR        models folder (default: $EMBEDDING_MODELS_DIR, else ./models)
  -h, --help       this text

Environment:
  HF_ENDPOINT      another Hugging Face endpoint, such as https://hf-mirror.com
  HF_TOKEN         for private and gated models
  PYTHON           the Python to use when there is no .venv (default: python3)
TEXT
}

fail() {
  printf 'download-model.sh: %s\n' "$1" >&2
  exit 1
}

for argument in "$@"; do
  case $argument in
    -h | --help)
      usage
      exit 0
      ;;
  esac
done

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
python=${PYTHON:-python3}
install="python3 -m venv .venv && .venv/bin/pip install -c constraints.txt huggingface-hub"
if [[ -x $root/.venv/bin/python ]]; then
  python=$root/.venv/bin/python
  install=".venv/bin/pip install -c constraints.txt huggingface-hub"
fi

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null ||
  fail "'$python' is no Python 3.10 or newer; name one: PYTHON=/path/to/python3 ./download-model.sh"
"$python" -c 'import huggingface_hub' 2>/dev/null ||
  fail "'$python' has no huggingface_hub. Here, in the project's folder, run: $install"

# Treat an empty variable as unset; the library would take it for an address.
[[ -n ${HF_ENDPOINT:-} ]] || unset HF_ENDPOINT
case ${HF_ENDPOINT:-https://} in
  http://* | https://*) ;;
  *) fail "HF_ENDPOINT must begin with http:// or https://, not '$HF_ENDPOINT'" ;;
esac
export HF_HUB_DISABLE_TELEMETRY=1
# Progress bars are for a terminal; in a log they are noise.
[[ -t 2 ]] || export HF_HUB_DISABLE_PROGRESS_BARS=1

exec "$python" "$root/scripts/fetch_model.py" "$@"
