#!/bin/sh
# Build the image with docker, podman or buildah, the first that works: scripts/image.sh [options of its `build`].
#
#   IMAGE=convlens:latest    the image's name
#   BUILDER=buildah          use this one
#   VARIANT=cuda             cuda; cpu: without CUDA; onnx: exported graphs alone, on a GPU (docs/serving.md)
#   BASE_IMAGE, MODEL, NAME, SWEEPS, PACKAGES    the Dockerfile's arguments of those names
#   VOLUMES="/opt/mirror:/opt/mirror:ro"    folders visible to the build (podman and buildah), such as a package mirror
#
# pip inside the build uses this machine's pip configuration. For VARIANT=cpu and VARIANT=onnx it names an index that has
# torch's CPU wheels, such as PyTorch's own, e.g. by PIP_EXTRA_INDEX_URL.
set -eu
cd "$(dirname "$0")/.."

fail() {
    echo "error: $1" >&2
    exit 2
}

case ${VARIANT:-cuda} in
    cuda | cpu | onnx) ;;
    *) fail "VARIANT=$VARIANT: one of cuda, cpu, onnx" ;;
esac

works() {
    case $1 in
        docker) docker info >/dev/null 2>&1 && docker buildx version >/dev/null 2>&1 ;; # a client alone builds nothing
        podman) podman info >/dev/null 2>&1 ;;
        buildah) buildah info >/dev/null 2>&1 ;;
        *) fail "BUILDER=$1: one of docker, podman, buildah" ;;
    esac
}

builder=${BUILDER:-}
if [ -n "$builder" ]; then
    works "$builder" || fail "$builder is not installed, or its service does not run"
else
    for one in docker podman buildah; do
        if works "$one"; then
            builder=$one
            break
        fi
    done
    [ -n "$builder" ] || fail "none of docker (running, with buildx), podman, buildah works here; install one of them"
fi

settings=$(mktemp -d)
trap 'rm -rf "$settings"' EXIT
trap 'exit 130' INT TERM
"${PYTHON:-python3}" scripts/pip_settings.py "$settings"

set -- --file Dockerfile --tag "${IMAGE:-convlens:latest}" "$@" \
    --secret "id=pip_conf,src=$settings/pip.conf" --secret "id=pip_ca,src=$settings/ca.crt"
for name in VARIANT BASE_IMAGE MODEL NAME SWEEPS PACKAGES; do
    eval "value=\${$name:-}"
    [ -z "$value" ] || set -- "$@" --build-arg "$name=$value"
done
if [ "$builder" = docker ]; then
    [ -z "${VOLUMES:-}" ] || fail "docker build mounts no volumes; use podman or buildah, or a pip index it can reach"
    set -- buildx build --load "$@"
else
    # OCI's own format has no health check.
    set -- build --format docker "$@"
    for volume in ${VOLUMES:-}; do
        set -- "$@" --volume "$volume"
    done
fi
echo "building ${IMAGE:-convlens:latest} with $builder"
"$builder" "$@" .
