# The session of the manual, as an administrator types it, on two nodes with a kernel each. Each has an origin (/dev/ubda) and a snapshot
# store (/dev/ubdb). $ZUMASTOR is the program; the guest's name says which node this is.
. "$LAB_SESSIONS/lib.sh"

zumastor() {
    "$ZUMASTOR" "$@"
}

same() {
    [ "$1" = "$2" ] || fail "$3: $1 and $2"
}

start() {
    "$ZUMASTOR" daemon --name "$LAB_GUEST" >>/run/lab/daemon.log 2>&1 &
    daemon=$!
    until zumastor status >/dev/null 2>&1; do
        kill -0 $daemon || fail "the daemon ended: $(cat /run/lab/daemon.log)"
        sleep 0.1
    done
}

# The peers' keys, which a person would carry from one node to the other.
introduce() {
    zumastor peer ticket --address "$LAB_GUEST:11235" >"$LAB_SHARED/ticket-$LAB_GUEST"
    tell "ticket-$LAB_GUEST"
    await "ticket-$1"
    zumastor peer add "$1" "$(cat "$LAB_SHARED/ticket-$1")"
    tell "knows-$1"
    await "knows-$LAB_GUEST"
}

snapshots=/run/zumastor/volumes/testvol-snapshots
volume=/run/zumastor/volumes/testvol

alpha() {
    date -s "2026-11-29 13:58:00" >/dev/null
    start
    introduce beta

    zumastor define volume testvol /dev/ubda /dev/ubdb --initialize --yes
    mkfs.ext4 -q /dev/mapper/testvol
    zumastor define master testvol --hourly 24 --daily 7
    mountpoint -q $volume || fail "the volume is not mounted"

    # A file appears in a snapshot when the next one is taken, not before.
    zumastor snapshot testvol hourly
    date >$volume/testfile
    [ -d $snapshots/hourly.0/lost+found ] || fail "the snapshot is not mounted: $(ls -l $snapshots)"
    [ ! -e $snapshots/hourly.0/testfile ] || fail "the snapshot has what came later"
    # The hour is about to strike. A clock that was set is noticed within a minute, and when a schedule changes.
    date -s "2026-11-29 13:59:58" >/dev/null
    zumastor define master testvol --hourly 12
    until [ -e $snapshots/hourly.1 ]; do sleep 0.1; done
    cmp $volume/testfile $snapshots/hourly.0/testfile
    [ ! -e $snapshots/hourly.1/testfile ] || fail "the older snapshot has what came later"
    [ -d "$(readlink -f $snapshots/hourly.0)" ] || fail "hourly.0 leads nowhere"
    basename "$(readlink $snapshots/hourly.0)" | grep -qx "2026\.11\.29-14\.0[0-9]\.[0-9][0-9]" || fail "$(ls -l $snapshots)"

    # To the other node.
    await defined
    zumastor define target testvol beta --period 86400
    zumastor replicate testvol beta --wait
    sum "/dev/mapper/testvol(1)" >"$LAB_SHARED/sum-1"
    zumastor digest "/dev/mapper/testvol(1)" | cut -d' ' -f1 >"$LAB_SHARED/digest-1"
    cp $volume/testfile "$LAB_SHARED/testfile"
    tell replicated-1
    await seen-1

    # Only what changed; the other node's volume shows it.
    echo more >>$volume/testfile
    zumastor snapshot testvol hourly
    zumastor replicate testvol beta --wait
    sum "/dev/mapper/testvol(2)" >"$LAB_SHARED/sum-2"
    cp $volume/testfile "$LAB_SHARED/testfile"
    zumastor history testvol | tail -1 | grep -E "replicated from snapshot 1: [0-9.]+ KiB of data" || fail "$(zumastor history testvol)"
    tell replicated-2
    await seen-2

    # Back to the first snapshot, and on from there.
    zumastor revert testvol 0
    [ ! -e $volume/testfile ] || fail "the volume is not what it was"
    newest=$(zumastor snapshot testvol hourly | cut -d' ' -f1)
    zumastor replicate testvol beta --wait
    sum "/dev/mapper/testvol($newest)" >"$LAB_SHARED/sum-3"
    tell replicated-3
    await seen-3

    # Larger, at both ends.
    zumastor resize testvol --origin 96M
    resize2fs "/dev/mapper/testvol" 2>&1
    head -c 60000000 /dev/urandom >$volume/large
    newest=$(zumastor snapshot testvol | cut -d' ' -f1)
    zumastor replicate testvol beta --wait
    sum "/dev/mapper/testvol($newest)" >"$LAB_SHARED/sum-4"
    sum $volume/large >"$LAB_SHARED/sum-large"
    tell replicated-4
    await seen-4

    zumastor status testvol
    zumastor forget target testvol beta
}

beta() {
    date -s "2026-11-29 13:58:00" >/dev/null
    start
    introduce alpha
    zumastor define volume testvol /dev/ubda /dev/ubdb --initialize --yes
    zumastor define source testvol alpha --mount-snap
    tell defined

    await replicated-1
    same "$(sum /dev/mapper/testvol)" "$(cat "$LAB_SHARED/sum-1")" "the volume"
    same "$(zumastor digest /dev/mapper/testvol | cut -d' ' -f1)" "$(cat "$LAB_SHARED/digest-1")" "the digest of the volume"
    cmp $volume/testfile "$LAB_SHARED/testfile"
    touch $volume/testfile 2>/dev/null && fail "the copy can be written to"
    tell seen-1

    await replicated-2
    same "$(sum /dev/mapper/testvol)" "$(cat "$LAB_SHARED/sum-2")" "the volume, later"
    cmp $volume/testfile "$LAB_SHARED/testfile"
    cmp $snapshots/hourly.0/testfile "$LAB_SHARED/testfile"
    tell seen-2

    await replicated-3
    same "$(sum /dev/mapper/testvol)" "$(cat "$LAB_SHARED/sum-3")" "the volume after the revert"
    [ -d $volume/lost+found ] && [ ! -e $volume/testfile ] || fail "the volume is not what it was: $(ls $volume)"
    tell seen-3

    await replicated-4
    same "$(blockdev --getsize64 /dev/mapper/testvol)" $((96 << 20)) "the size"
    same "$(sum /dev/mapper/testvol)" "$(cat "$LAB_SHARED/sum-4")" "the larger volume"
    same "$(sum $volume/large)" "$(cat "$LAB_SHARED/sum-large")" "the file in the larger volume"
    tell seen-4
    zumastor status testvol
    zumastor forget source testvol
}

"$LAB_GUEST"

# Nothing is left of it but the data.
zumastor forget volume testvol
dmsetup ls | grep -v "No devices" && fail "devices are left"
grep zumastor /proc/self/mounts && fail "mounts are left"
zumastor status | grep testvol && fail "the volume is still known"
kill $daemon
wait $daemon || fail "the daemon did not end well"
# Nobody leaves before the other is done.
tell "$LAB_GUEST-done"
if [ "$LAB_GUEST" = alpha ]; then await beta-done; else await alpha-done; fi
echo "all of the session held"
