# What sessions share. The guest's kernel and root file system are a session's own; see testbed/src/lab.

set -eu

fail() {
    echo "FAILED: $*" >&2
    exit 1
}

# Two guests of one lab meet by names: one tells, the other waits.
tell() {
    : >"$LAB_SHARED/told-$1"
}

await() {
    until [ -e "$LAB_SHARED/told-$1" ]; do sleep 0.1; done
}

# Where udev runs: it has read nothing from devices of ours and made no links to them, keeps nothing of devices that are gone, and nobody
# waits for it.
check_udev() {
    [ -e /run/udev/control ] || return 0
    udevadm settle
    for kept in /run/udev/data/b*; do
        device=/sys/dev/block/${kept##*/b}
        [ -e "$device" ] || fail "udev keeps $kept: $(cat "$kept")"
        case $(cat "$device/dm/uuid" 2>/dev/null) in
            ZUMASTOR-*) grep -E "^S:|^W:|^E:ID_" "$kept" && fail "udev busies itself with $(cat "$device/dm/name")" ;;
        esac
    done
    [ "$(wc -l </proc/sysvipc/sem)" = 1 ] || fail "somebody waits for udev, or did: $(dmsetup udevcookies)"
}

# Bytes of a device or file, as one word; of a device what is on the disk, for a file system that is mounted from it keeps its own
# idea of some blocks in the page cache.
sum() {
    if [ -b "$1" ]; then
        dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1
    else
        sha256sum <"$1" | cut -d' ' -f1
    fi
}
