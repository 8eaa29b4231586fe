# Two guests, each with a kernel of its own, reach each other by name.
. "$LAB_SESSIONS/lib.sh"

other=$1
tell "$LAB_GUEST"
await "$other"
until ping -c 1 -W 1 "$other" >/dev/null; do sleep 0.1; done
ping -c 3 -i 0.2 "$other"
# Nobody leaves before the other has been answered.
tell "$LAB_GUEST-done"
await "$other-done"
