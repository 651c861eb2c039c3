#!/usr/bin/env bash
# Compares proto/ with another version of it and fails on changes that break who already speaks the protocol.
#
#   deploy/check-breaking.sh [REVISION]        default: the first commit that has this version of the protocol
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

first=$(git rev-list --reverse HEAD -- proto/slos_serve/v1 | sed -n 1p)
reference=$(git rev-parse --quiet --verify "${1:-$first}^{commit}") ||
    { echo "check-breaking: no revision '${1:-$first}' in this clone" >&2; exit 1; }
buf breaking proto --against ".git#ref=$reference,subdir=proto"
echo "proto/ breaks nobody who speaks it as of $(git log -1 --format='%h (%cs)' "$reference")"
