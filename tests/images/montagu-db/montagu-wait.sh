#!/bin/sh
# montagu-wait.sh SECONDS: waits until the database accepts connections.
left=${1:-60}
until psql -Atqc 'select 1' postgres >/dev/null 2>&1; do
    left=$((left - 1))
    [ "$left" -gt 0 ] || { echo 'the database did not come up' >&2; exit 1; }
    sleep 1
done
