#!/usr/bin/env bash
# Finds the browser for the tests of the page, or installs Debian's. Sourced by test.sh.
#
#   setup_browser    does nothing when CHROMIUM names a browser or one is on the PATH
#
# It never fails. Without a browser, the tests that need one fail and say how to get it.

_find_browser() {
    local name
    if [ -n "${CHROMIUM:-}" ]; then
        command -v "$CHROMIUM" >/dev/null
        return
    fi
    for name in chromium chromium-browser google-chrome; do
        command -v "$name" >/dev/null && return
    done
    return 1
}

_apt_install() {
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$@" \
        </dev/null >/dev/null 2>&1
}

setup_browser() {
    _find_browser && return
    if [ -z "${CHROMIUM:-}" ] && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
        echo "installing chromium for the tests of the page: this happens once" >&2
        # The package list may be missing, as in most images, or outdated.
        _apt_install chromium ||
            { apt-get update -qq >/dev/null 2>&1 && _apt_install chromium; } || true
        _find_browser && return
    fi
    echo "note: no browser for tests/browser; install chromium (on Debian, as root:" \
        "apt-get install chromium) or name one with CHROMIUM=/path/to/it" >&2
}
