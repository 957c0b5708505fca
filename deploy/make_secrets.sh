#!/bin/sh
# Choose the secrets of docker-compose.yml, once: random ones, as files in deploy/secrets. What is there already stays.
#   sh deploy/make_secrets.sh
set -eu
cd "$(dirname "$0")"
mkdir -p secrets && chmod 700 secrets  # the files are for the containers' users, the folder for you alone
random() { od -An -N18 -tx1 /dev/urandom | tr -d ' \n'; }
new() { if [ ! -e "secrets/$1" ]; then printf '%s' "$2" >"secrets/$1"; echo "made deploy/secrets/$1"; fi; }
new postgres "$(random)"
new prefect "admin:$(random)"  # what Prefect's page asks for
new mlflow "$(random)"         # MLflow's password for the user admin
new mlflow_session "$(random)"
new s3 "$(random)"
new notify ""                  # where people are told, apart by spaces: see `pipeline deploy --help`
new s3.json "{\"identities\": [{\"name\": \"full-pipeline\",
  \"credentials\": [{\"accessKey\": \"full-pipeline\", \"secretKey\": \"$(cat secrets/s3)\"}],
  \"actions\": [\"Admin\", \"Read\", \"Write\", \"List\", \"Tagging\"]}]}"
chmod 644 secrets/*
