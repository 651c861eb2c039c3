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
DOWNLOADS=$ENV_DIR/.downloads
PIP_SAID=$DOWNLOADS/pip.log
# How long it took the last time on this machine, which is told the next time.
TIMES=${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/slos-serve/installed-$(basename "$LOCK").seconds
readonly ROOT LOCK ENV_DIR STAMP ENV_PYTHON DOWNLOADS PIP_SAID TIMES
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

# Of an index that it cannot reach pip says on the terminal that no version fits, or that dependencies are in conflict.
why_not() {
    local unread
    unread=$(grep -m 1 -o 'Could not fetch URL .*' "$PIP_SAID") || true
    if [ -n "$unread" ]; then
        echo "pip could not reach a source of packages, whatever it says above. $unread"
    else
        echo "the packages of $(basename "$LOCK") cannot be installed; pip said why above, and at length in $PIP_SAID"
    fi
}

count_installed() {
    find "$ENV_DIR"/lib/*/site-packages -maxdepth 1 -name '*.dist-info' | wc -l
}

# Says every few seconds how far an installation is, until this script is gone. pip loads everything into its temporary
# directory first, and installs it then.
show_progress() {
    local began=$SECONDS seconds megabytes installed before line
    before=$(count_installed)
    while sleep 3 && kill -0 $$ 2>/dev/null; do
        seconds=$((SECONDS - began))
        megabytes=$(du -sm "$DOWNLOADS" 2>/dev/null | cut -f 1) || true
        installed=$(($(count_installed) - before))
        line="      $seconds s: ${megabytes:-0} MB loaded, $installed of $packages packages installed"
        if [ -t 2 ]; then
            printf '\r%s\033[K' "$line" >&2
        elif [ $((seconds % 15)) -lt 3 ]; then
            say "$line"
        fi
    done
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
last=$(cat "$TIMES" 2>/dev/null || true)
case $(basename "$LOCK") in
worker-* | gateway*) steps=4 ;; # Only routers plan.
*) steps=5 ;;
esac
started=$SECONDS

say "[1/$steps] virtual environment in $1${last:+ (all of it took $last s the last time)}"
python=
[ -x "$ENV_PYTHON" ] || python=$(find_python)
echo "$INSTALLING" >"$STAMP"
[ -z "$python" ] || "$python" -m venv "$ENV_DIR"

say "[2/$steps] installing $packages packages of $(basename "$LOCK") ..."
mkdir -p "$DOWNLOADS"
: >"$PIP_SAID"
export TMPDIR=$DOWNLOADS
show_progress 9>&- &
watcher=$!
# The watcher holds the output open, and takes a script that ended but was not waited for to be running still.
trap 'kill "$watcher" 2>/dev/null || true' EXIT
[ -z "$torch" ] || install_torch "$torch"
# Anchored on the "+cpu": a CUDA lock's torch is on the ordinary index and stays in the list.
pip_install --log "$PIP_SAID" -r <(grep -vE '^torch==[^ ]+\+cpu' "$LOCK") || fail "$(why_not)"
kill "$watcher" 2>/dev/null || true
trap - EXIT
[ ! -t 2 ] || printf '\r\033[K' >&2
rm -rf "$DOWNLOADS"
unset TMPDIR

say "[3/$steps] this repository, editable"
# No build isolation: it would fetch setuptools again, which the lock already holds.
pip_install --no-build-isolation -e ./slos_serve -e .

say "[4/$steps] compiling to bytecode, so that the first start is not the slow one ..."
# A few packages ship templates and tests that are not valid Python for this version; nothing imports them.
"$ENV_PYTHON" -m compileall -qq -j 0 "$ENV_DIR/lib" || true

if [ "$steps" = 5 ]; then
    say "[5/$steps] compiling the planner, about half a minute of a processor ..."
    # Without it everything works: routers compile beside themselves when they start.
    "$ENV_PYTHON" -m router.compile_planner || say "      it was not compiled; the first router will do it"
fi

wanted >"$STAMP"
mkdir -p "$(dirname "$TIMES")" 2>/dev/null && echo "$((SECONDS - started))" >"$TIMES" || true
say "      done in $((SECONDS - started)) s"
