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

# Bytes of a device or file, as one word.
sum() {
    sha256sum <"$1" | cut -d' ' -f1
}
