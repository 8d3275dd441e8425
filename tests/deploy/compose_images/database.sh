#!/bin/sh
# What the official image's entry point does with POSTGRES_USER, POSTGRES_PASSWORD, POSTGRES_DB and PGDATA.
set -eu

if [ ! -s "$PGDATA/PG_VERSION" ]; then
    echo "$POSTGRES_PASSWORD" > /tmp/password
    initdb --username="$POSTGRES_USER" --pwfile=/tmp/password --auth-local=trust --auth-host=scram-sha-256
    rm /tmp/password
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    # Only on the socket, so that nobody takes it for ready.
    pg_ctl --options="-c listen_addresses=" --wait start
    createdb --username="$POSTGRES_USER" --maintenance-db=postgres "$POSTGRES_DB"
    pg_ctl --mode=fast --wait stop
fi
exec postgres -c listen_addresses='*'
