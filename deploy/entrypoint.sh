#!/bin/sh
# Secrets as files: every file of /run/secrets (or SECRETS) whose name is that of a variable becomes that variable for
# the command that follows. Its value is in no image, no `docker inspect` and no process list.
set -eu
for file in "${SECRETS:-/run/secrets}"/*; do
    name=${file##*/}
    case $name in *[!A-Z0-9_]*) continue ;; esac
    if [ -f "$file" ]; then
        value=$(cat "$file")
        export "$name=$value"
    fi
done
exec "$@"
