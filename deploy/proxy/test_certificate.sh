#!/bin/sh
# A certificate for tests, valid for 30 days: deploy/proxy/test_certificate.sh FOLDER [HOST]. Clients must be configured
# to trust FOLDER/tls.crt. For real use, take a certificate from an authority.
set -eu
umask 077
folder=${1:?usage: test_certificate.sh FOLDER [HOST]}
host=${2:-localhost}
mkdir -p "$folder"
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 30 -subj "/CN=$host" \
    -addext "subjectAltName=DNS:$host,DNS:localhost,IP:127.0.0.1" \
    -keyout "$folder/tls.key" -out "$folder/tls.crt" 2>/dev/null
echo "$folder/tls.crt for $host"
