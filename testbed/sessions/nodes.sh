# Several nodes on one guest, each with a daemon and directories of its own. $ZUMASTOR is the program.
. "$LAB_SESSIONS/lib.sh"

z() {
    node=$1
    shift
    ZUMASTOR_ROOT=/run/lab/$node "$ZUMASTOR" "$@"
}

# Starts the daemon of a node on a port, and waits until it answers.
start() {
    ZUMASTOR_ROOT=/run/lab/$1 "$ZUMASTOR" daemon --name "$1" --listen "127.0.0.1:$2" >>"/run/lab/$1.log" 2>&1 &
    echo $! >"/run/lab/$1.pid"
    until z "$1" status >/dev/null 2>&1; do
        kill -0 "$(cat "/run/lab/$1.pid")" || fail "the daemon of $1 ended: $(cat "/run/lab/$1.log")"
        sleep 0.1
    done
}

# Ends the daemon of a node with a signal, and waits until it is gone.
stop() {
    kill "-$2" "$(cat "/run/lab/$1.pid")"
    wait "$(cat "/run/lab/$1.pid")" || [ "$2" = KILL ] || fail "the daemon of $1 did not end well"
}

introduce() {
    z "$1" peer add "$2" "$(z "$2" peer ticket)"
    z "$2" peer add "$1" "$(z "$1" peer ticket)"
}

same() {
    [ "$1" = "$2" ] || fail "$3: $1 and $2"
}

digest() {
    z "$1" digest "$2" | cut -d' ' -f1
}

mount_snapshot() {
    mount -o ro,noload "$1" /run/snapshot
}
