# shellcheck shell=bash
# Shared opening of the scripts in this directory; sourced, never run.
# Law: what every entry needs and nothing that one entry alone needs.

set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)
entry=${0##*/}

say() { printf '%s: %s\n' "$entry" "$*" >&2; }

die() {
    say "$*"
    exit 1
}

# The reason is the second half of a sentence: "needs root: ...".
need_root() {
    ((EUID == 0)) || die "needs root: $1; run it again as: sudo scripts/$entry"
}

need_tun() {
    [[ -c /dev/net/tun ]] || modprobe tun 2>/dev/null || true
    [[ -c /dev/net/tun ]] || die "needs /dev/net/tun, which is not a character device here: load the kernel's tun module" \
        "(modprobe tun), or, in a container, pass the device in (docker run --cap-add NET_ADMIN --cap-add SYS_ADMIN" \
        "--device /dev/net/tun)"
    # Opening tells a device that exists from one that a container may not use.
    (exec 3<>/dev/net/tun) 2>/dev/null || die "needs /dev/net/tun, which is there but cannot be opened: the container's" \
        "device rules forbid it (docker run --device /dev/net/tun allows it)"
}

# What root leaves in a tree of somebody else is in that user's way: bytecode is not written at all, and the
# caches of the tools go back to the owner.
[[ $(stat -c %u "$root") == "$EUID" ]] || export PYTHONDONTWRITEBYTECODE=1

give_back() {
    local owner path
    ((EUID == 0)) || return 0
    owner=$(stat -c %u:%g "$root")
    [[ $owner != 0:0 ]] || return 0
    for path in "$root"/{.venv,.mypy_cache,.ruff_cache,.pytest_cache,.hypothesis,vnic.egg-info,build,native/target}; do
        # A courtesy, and no reason to fail: root of a container may not hand over every owner.
        [[ ! -e $path ]] || chown -hR "$owner" "$path" 2>/dev/null || true
    done
}
