#!/bin/sh
# Installs what a requirements file with hashes names, and nothing else, into /opt/venv: install.sh FILE
# Beside it lies what the image shall not hold: uv, its cache, wheels, and the secrets that were given.
set -eu
here=$(dirname "$0")
[ ! -f "$here/ca.crt" ] || export SSL_CERT_FILE="$here/ca.crt"
[ ! -f "$here/netrc" ] || export NETRC="$here/netrc"
export UV_CACHE_DIR="$here/cache"
INDEX_URL=${INDEX_URL:-}

# PyTorch's own index alone has the builds for a CPU.
if grep -q '^torch==.*+cpu' "$1" && ! ls "$here"/wheels/torch-*+cpu-*.whl >/dev/null 2>&1; then
    INDEX_URL=$TORCH_INDEX_URL
fi
# A build for a CPU would do for a lock that names none.
wheels="--find-links $here/wheels"
! grep '^torch==' "$1" | grep -qv '+cpu' || wheels=
"$here/bin/uv" pip install --quiet --no-config --python /opt/venv/bin/python --link-mode copy \
    --no-deps --require-hashes --only-binary :all: \
    ${INDEX_URL:+--default-index "$INDEX_URL"} $wheels --requirements "$1"

# Nobody runs the tests of libraries here.
cd /opt/venv/lib/python3.11/site-packages
find . -type d \( -name tests -o -path ./torch/test \) -prune -exec rm -r {} +
find . -path './torch/bin/*' -type f -iname '*test*' -delete

# Whoever runs the image cannot write bytecode. A few files are in the syntax of a later Python, and stay as they are.
/opt/venv/bin/python -m compileall -qq -j 0 . || true
