#!/usr/bin/env bash
# Prints the path of a Chromium for the browser tests, installing one where it can; prints nothing where it can't, and says why.
find_browser() {
    for name in "${BGCS_CHROMIUM:-}" chromium chromium-browser google-chrome google-chrome-stable; do
        [ -n "$name" ] && command -v "$name" && return 0
    done
    # a browser that Playwright installed earlier
    ls -d "$HOME"/.cache/ms-playwright/chromium-*/chrome-linux*/chrome 2>/dev/null | tail -n 1 | grep .
}
as_root() { if [ "$(id -u)" = 0 ]; then "$@"; elif command -v sudo >/dev/null && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi; }

find_browser && exit 0
if command -v apt-get >/dev/null; then
    echo "Installing Chromium for the browser tests" >&2
    export DEBIAN_FRONTEND=noninteractive
    as_root apt-get update -qq >/dev/null 2>&1
    as_root apt-get install -y -qq --no-install-recommends chromium >/dev/null 2>&1
fi
find_browser && exit 0
[ -n "${1:-}" ] && timeout 300 "$1" -m playwright install chromium >/dev/null 2>&1
find_browser && exit 0
echo "No Chromium here, and none could be installed (no rights to install packages, or no network): browser tests will be skipped. Install Chromium, or set BGCS_CHROMIUM to one." >&2
