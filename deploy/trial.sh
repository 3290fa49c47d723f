# shellcheck shell=bash
# What trials say of what they try. To be sourced; the script that does so has a `bad WHAT` that tells what is at hand and
# ends it.
#
#   good WHAT                       it holds
#   expect WHAT COMMAND...          COMMAND must succeed
#   await WHAT SECONDS COMMAND...   COMMAND must succeed within so many seconds

trial=0
good() {
    trial=$((trial + 1))
    echo "  ok $trial: $*"
}

expect() {
    local what=$1 out
    shift
    out=$("$@" 2>&1) || { echo "$out" | sed 's/^/    /'; bad "$what"; }
    good "$what"
}

await() {
    local what=$1 until=$((SECONDS + $2))
    shift 2
    until "$@" >/dev/null 2>&1; do
        [ "$SECONDS" -lt "$until" ] || { "$@" 2>&1 | sed 's/^/    /' || true; bad "$what"; }
        sleep 0.2
    done
    good "$what"
}
