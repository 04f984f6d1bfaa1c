#!/bin/sh
# Makes the secrets of docker-compose.yml in the folder `secrets`, and keeps those that are there.
#
# Containers read them as users of their own, so everybody may read the files; nobody but you may enter the folder.
set -eu
cd "$(dirname "$0")/.."
mkdir -p -m 700 secrets

secret() {
    if [ ! -e "secrets/$1" ]; then
        printf '%s\n' "$2" > "secrets/$1"
        chmod 644 "secrets/$1"
    fi
}

secret postgres_password "$(od -An -N24 -tx1 /dev/urandom | tr -d ' \n')"
secret database_url "postgresql://helixq:$(cat secrets/postgres_password)@postgres/helixq"
for optional in engine_api_key hf_token log_key prometheus_key; do
    secret "$optional" ""
done
