#!/usr/bin/env bash
# Makes the certificate with which a Dask cluster knows its own scheduler, workers and clients.
#
#   bash launch/dask/certificates.sh FOLDER
#   source FOLDER/dask.env
#
# FOLDER is created, readable by you alone, on the file system that the machines share. Whoever can
# read key.pem in it can run programs on the workers. Valid for a year; for another one, remove
# FOLDER. The key of the authority is not kept, so it signs nothing else.
set -euo pipefail
if [ $# != 1 ]; then
  echo "usage: bash $0 FOLDER" >&2
  exit 2
fi
umask 077
mkdir -p -- "$1"
folder=$(cd -- "$1" && pwd)
if [ -e "$folder/dask.env" ]; then
  echo "$folder has a certificate already; remove the folder to make another one" >&2
  exit 2
fi

quietly() {
  local messages
  messages=$("$@" 2>&1) || { echo "$messages" >&2; exit 1; }
}
authority=$(mktemp -d)
trap 'rm -rf -- "$authority"' EXIT
for key in "$authority/key.pem" "$folder/key.pem"; do
  quietly openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$key"
done
quietly openssl req -x509 -new -key "$authority/key.pem" -subj "/CN=fer_jax's own authority" \
  -days 365 -out "$folder/authority.pem"
quietly openssl req -new -key "$folder/key.pem" -subj "/CN=fer_jax" -out "$authority/request.pem"
printf 'basicConstraints=CA:FALSE\nextendedKeyUsage=serverAuth,clientAuth\n' > "$authority/usage"
quietly openssl x509 -req -in "$authority/request.pem" -extfile "$authority/usage" -days 365 \
  -CA "$folder/authority.pem" -CAkey "$authority/key.pem" -CAserial "$authority/serial" -CAcreateserial \
  -out "$folder/certificate.pem"

variable() { printf 'export DASK_DISTRIBUTED__COMM__%s=%q\n' "$1" "$2"; }
{
  variable REQUIRE_ENCRYPTION True
  variable DEFAULT_SCHEME tls
  variable TLS__CA_FILE "$folder/authority.pem"
  for role in SCHEDULER WORKER CLIENT; do
    variable "TLS__${role}__CERT" "$folder/certificate.pem"
    variable "TLS__${role}__KEY" "$folder/key.pem"
  done
} > "$authority/dask.env"
mv -- "$authority/dask.env" "$folder/dask.env"
printf 'source %q\n' "$folder/dask.env"
