#!/usr/bin/env bash
# Compares proto/ with another version of it and fails on changes that break who already speaks the protocol.
#
#   deploy/check-breaking.sh [REFERENCE]        a buf input; default: proto/ on this clone's branch main
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

reference=${1:-.git#branch=main,subdir=proto}
if [[ $reference == .git#branch=* ]]; then
    branch=${reference#.git#branch=}
    branch=${branch%%,*}
    if ! git rev-parse --quiet --verify "refs/heads/$branch:proto" >/dev/null; then
        # A shallow clone, a detached checkout or a first commit: that is no fault of the change.
        echo "check-breaking: this clone has no branch '$branch' with proto/ in it; nothing to compare with" >&2
        exit 0
    fi
fi
buf breaking proto --against "$reference"
