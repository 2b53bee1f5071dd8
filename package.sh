#!/usr/bin/env bash
# Builds the container image and saves it to one file that a site without a network can load,
# with checksums and, on request, a model's folder.
set -euo pipefail

usage() {
  cat <<'TEXT'
Usage: ./package.sh [OPTIONS]

Builds the image and writes to dist/:
  embedding-<version>-<arch>.tar.gz   the image, for `docker load`
  <model>.tar                         the model's folder, with --model
  embedding-<version>-<arch>.sha256   checksums, for `sha256sum -c`

  --model NAME        also pack models/NAME (download it with ./download-model.sh first)
  --base-image IMAGE  build on this image, such as a vendor's with torch and its plug-in
                      (default: $BASE_IMAGE, else the Dockerfile's)
  --no-demo           leave out the small stand-in model
  --output DIR        write there (default: dist)
  -h, --help          this text

Environment:
  BASE_IMAGE            see --base-image
  TORCH_INDEX_URL       where the image's torch comes from (default: its CPU builds)
  EMBEDDING_MODELS_DIR  the models folder (default: ./models)
TEXT
}

fail() {
  printf 'package.sh: %s\n' "$1" >&2
  exit "${2:-1}"
}

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")" && pwd)
models=${EMBEDDING_MODELS_DIR:-$root/models}
output=$root/dist
base_image=${BASE_IMAGE:-}
with_demo=1
model=""

while (($#)); do
  case $1 in
    -h | --help)
      usage
      exit 0
      ;;
    --no-demo) with_demo=0 ;;
    --model | --base-image | --output)
      (($# > 1)) || fail "$1 needs a value; see ./package.sh --help" 2
      case $1 in
        --model) model=$2 ;;
        --base-image) base_image=$2 ;;
        --output) output=$2 ;;
      esac
      shift
      ;;
    *) fail "unknown argument '$1'; see ./package.sh --help" 2 ;;
  esac
  shift
done

# Find every mistake before the build, which takes minutes.
version=$(sed -n 's/^version = "\([0-9A-Za-z.+-]*\)"$/\1/p' "$root/pyproject.toml" | head -n 1)
[[ -n $version ]] || fail "pyproject.toml has no line: version = \"...\""
if [[ -n $model ]]; then
  [[ $model =~ ^[A-Za-z0-9][A-Za-z0-9._-]*$ ]] || fail "'$model' is no model name" 2
  [[ -f $models/$model/config.json ]] ||
    fail "$models/$model is no model; fetch it first: ./download-model.sh $model"
  models=$(cd -- "$models" && pwd) # tar runs in another folder
fi
command -v docker >/dev/null ||
  fail "docker is not installed. See https://docs.docker.com/engine/install/"
docker version --format '{{.Server.Version}}' >/dev/null ||
  fail "docker's daemon does not answer (see above). Is it running, and may you use it?"

build=(docker build --build-arg "WITH_DEMO=$with_demo" --tag "embedding:$version")
[[ -z $base_image ]] || build+=(--build-arg "BASE_IMAGE=$base_image")
[[ -z ${TORCH_INDEX_URL+set} ]] || build+=(--build-arg "TORCH_INDEX_URL=$TORCH_INDEX_URL")
"${build[@]}" "$root"

arch=$(docker image inspect --format '{{.Architecture}}' "embedding:$version")
name=embedding-$version-$arch
files=("$name.tar.gz")
mkdir -p "$output"
cd "$output"

# Write under another name first, so that a failed save leaves no file that looks like an image.
trap 'rm -f "$name.tar.gz.part" "$model.tar.part"' EXIT
docker save "embedding:$version" | gzip >"$name.tar.gz.part"
mv "$name.tar.gz.part" "$name.tar.gz"
if [[ -n $model ]]; then
  # Not compressed, because weights hardly shrink. Readable by everyone, because the container runs
  # as another user.
  tar -C "$models" --dereference --owner=0 --group=0 --mode=a+rX -cf "$model.tar.part" "$model"
  mv "$model.tar.part" "$model.tar"
  files+=("$model.tar")
fi
sha256sum "${files[@]}" >"$name.sha256"

cat <<TEXT

In $PWD:
$(du -h "${files[@]}" "$name.sha256")

On the target machine, in a folder with these files:
  sha256sum -c $name.sha256
  docker load -i $name.tar.gz
  mkdir -p models${model:+
  tar -C models -xf $model.tar}
  docker run -d --name embedding --stop-timeout 60 --restart unless-stopped -p 8000:8000 \\
    -v "\$PWD/models:/models:ro"${model:+ -e EMBEDDING_MODEL=$model} embedding:$version
TEXT
if [[ -n $base_image ]]; then
  echo "  (an accelerator needs more flags; see the vacc service in docker-compose.yaml)"
fi
