#!/usr/bin/env bash
# Installs the programs that some tests look for on the path: Chromium for the console, Prometheus for the dashboards.
#
#   deploy/test-tools.sh
#
# Returns at once if both are there. Ends with 1, after saying why, where they cannot be installed; tests that need them
# are then skipped. Debian starts Prometheus as a service where there is a service manager: `systemctl disable --now
# prometheus` stops it, and the tests start their own.
set -euo pipefail

readonly NETWORK=(-o Acquire::Retries=1 -o Acquire::http::Timeout=30 -o Acquire::https::Timeout=30)
LOG=$(mktemp)
trap 'rm -f "$LOG"' EXIT

missing() {
    local found=() chromes=(chromium chromium-browser google-chrome google-chrome-stable)
    [ -n "${CHROMIUM:-}" ] || [ -n "$(type -P "${chromes[@]}")" ] || found+=(chromium)
    { [ -n "${PROMETHEUS:-}" ] || type -P prometheus >/dev/null; } && type -P promtool >/dev/null || found+=(prometheus)
    echo "${found[*]}"
}

give_up() {
    echo "test-tools: no $(missing): $*; the tests that need them are skipped" >&2
    exit 1
}

[ -n "$(missing)" ] || exit 0
command -v apt-get >/dev/null || give_up "this machine has no apt-get"
[ "$(id -u)" = 0 ] || give_up "only root can install packages"
echo "test-tools: installing $(missing) ..." >&2
export DEBIAN_FRONTEND=noninteractive
apt-get "${NETWORK[@]}" update -q >"$LOG" 2>&1 || give_up "apt-get update said: $(tail -n 1 "$LOG")"
for package in $(missing); do
    apt-get "${NETWORK[@]}" -o DPkg::Lock::Timeout=120 install -y -q --no-install-recommends "$package" >"$LOG" 2>&1 ||
        give_up "apt-get install $package said: $(tail -n 1 "$LOG")"
done
[ -z "$(missing)" ] || give_up "the packages have no such program"
