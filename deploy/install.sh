#!/usr/bin/env bash
# Makes a virtual environment that holds exactly one lock file and this repository.
#
#   deploy/install.sh ENV_DIR LOCK        e.g. deploy/install.sh .venv requirements/dev.lock
#
# Run again it returns at once while the lock is unchanged, brings the environment up to date when it changed, and starts
# over when an earlier run was interrupted. PYTHON names the interpreter to use (3.11 or 3.12).
set -euo pipefail

readonly TORCH_CPU_INDEX=https://download.pytorch.org/whl/cpu
readonly INSTALLING=installing

fail() {
    echo "install.sh: $*" >&2
    exit 1
}

say() { echo "$*" >&2; }

[ $# -eq 2 ] || fail "usage: deploy/install.sh ENV_DIR LOCK"
ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
[ -f "$2" ] || fail "no lock file $2"
LOCK=$(cd "$(dirname "$2")" && pwd)/$(basename "$2")
[ -n "$1" ] || fail "ENV_DIR is empty"
mkdir -p "$1"
ENV_DIR=$(cd "$1" && pwd)
STAMP=$ENV_DIR/.slos-serve-lock
ENV_PYTHON=$ENV_DIR/bin/python
readonly ROOT LOCK ENV_DIR STAMP ENV_PYTHON
cd "$ROOT"

wanted() {
    # Scripts of an environment name its place, and the editable installation names the repository's: both may move.
    echo "$ENV_DIR $ROOT"
    cat "$LOCK" pyproject.toml slos_serve/pyproject.toml deploy/install.sh | sha256sum | cut -d ' ' -f 1
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-python3.11 python3 python3.12}; do
        if "$candidate" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info < (3, 13))' 2>/dev/null; then
            "$candidate" -c 'import ensurepip, venv' 2>/dev/null ||
                fail "$candidate has no venv module; on Debian and Ubuntu: apt-get install python3-venv"
            echo "$candidate"
            return
        fi
    done
    fail "Python 3.11 or 3.12 is needed; tried: ${PYTHON:-python3.11 python3 python3.12} (set PYTHON=/path/to/python3.11)"
}

pip_install() {
    # -qq: pip warns at length about sources that are configured but empty. Bytecode is made afterwards, on all cores.
    "$ENV_PYTHON" -m pip install -qq --disable-pip-version-check --no-input --no-compile --no-deps "$@"
}

install_torch() {
    local requirement=$1 refusal
    if ! refusal=$(pip_install "$requirement" 2>&1); then
        say "      $requirement is not in pip's configured sources; taking it from $TORCH_CPU_INDEX"
        pip_install --index-url "$TORCH_CPU_INDEX" "$requirement" ||
            fail "$requirement cannot be had. pip's configured sources said: $refusal"
    fi
}

# Two runs at once would install over each other; the lock goes with the process, whatever ends it.
exec 9<"$ROOT/deploy/install.sh"
if command -v flock >/dev/null && ! flock --nonblock 9; then
    say "another installation is running; waiting for it"
    flock 9
fi

stamped=$(cat "$STAMP" 2>/dev/null || true)
if [ "$stamped" = "$(wanted)" ] && [ -x "$ENV_PYTHON" ]; then
    exit 0
fi

if [ -n "$stamped" ] && { [ "${stamped%%$'\n'*}" != "$ENV_DIR $ROOT" ] || [ ! -x "$ENV_PYTHON" ]; }; then
    # Half an installation looks whole to pip: it is not mended but made anew. The stamp stays, so that this holds for an
    # interruption here too.
    say "$ENV_DIR is incomplete or was moved: starting over"
    echo "$INSTALLING" >"$STAMP"
    find "$ENV_DIR" -mindepth 1 ! -path "$STAMP" -delete
elif [ ! -e "$ENV_DIR/pyvenv.cfg" ] && [ -n "$(ls -A "$ENV_DIR")" ]; then
    fail "$ENV_DIR exists and is not a virtual environment"
fi

torch=$(grep -E '^torch==[^ ]+\+cpu' "$LOCK" || true)
packages=$(grep -cE '^[A-Za-z0-9]' "$LOCK")
[ "$packages" -gt 100 ] && duration="one to three minutes" || duration="under a minute"
started=$SECONDS

say "[1/4] virtual environment in $1"
python=
[ -x "$ENV_PYTHON" ] || python=$(find_python)
echo "$INSTALLING" >"$STAMP"
[ -z "$python" ] || "$python" -m venv "$ENV_DIR"

say "[2/4] installing $packages packages of $(basename "$LOCK"), $duration ..."
[ -z "$torch" ] || install_torch "$torch"
# Anchored on the "+cpu": a CUDA lock's torch is on the ordinary index and stays in the list.
pip_install -r <(grep -vE '^torch==[^ ]+\+cpu' "$LOCK")

say "[3/4] this repository, editable"
# No build isolation: it would fetch setuptools again, which the lock already holds.
pip_install --no-build-isolation -e ./slos_serve -e .

say "[4/4] compiling to bytecode, so that the first start is not the slow one ..."
# A few packages ship templates and tests that are not valid Python for this version; nothing imports them.
"$ENV_PYTHON" -m compileall -qq -j 0 "$ENV_DIR/lib" || true

wanted >"$STAMP"
say "      done in $((SECONDS - started)) s"
