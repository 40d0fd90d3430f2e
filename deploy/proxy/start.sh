#!/bin/sh
# nginx in front of a server. It sends the token in the server's key_file.json, and reads it again after a restart.
#
#   CONVLENS_KEY_FILE   the server's key_file.json; the script waits for it, and must be able to read it
#   PROXY_TLS           folder with tls.crt and tls.key; "none" behind a gateway that terminates TLS (then without gRPC)
#   PROXY_CLIENTS       file of lines like: "Bearer TOKEN" name;
#   PROXY_LISTEN        address and port for clients, default 127.0.0.1:8443
#   PROXY_METRICS       address and port for Prometheus, default 127.0.0.1:9102
#   PROXY_REST, PROXY_GRPC, PROXY_TORCHSERVE_METRICS    the server's addresses, by default those of config.properties
#   PROXY_MODELS        names of the model entries for / and /help, the first eight also for /v2/health/ready; by default
#                       those in the server.json beside the key file, else convlens
#   PROXY_SITE          folder that `convlens explore --server / -o` wrote, to be served at / without a token; none by default
#   PROXY_ORIGINS       origins whose pages may ask as well, such as "https://host http://127.0.0.1:8000"; none by default
#   PROXY_DIR           folder to write to, default /tmp/proxy
#
# On SIGTERM it answers the requests in flight, then ends.
set -eu

here=$(cd "$(dirname "$0")" && pwd)
keys=${CONVLENS_KEY_FILE:-/run/convlens/key_file.json}
record=$(dirname "$keys")/server.json
tls=${PROXY_TLS:-/etc/convlens/tls}
clients=${PROXY_CLIENTS:-/etc/convlens/clients/clients.conf}
folder=${PROXY_DIR:-/tmp/proxy}

fail() {
    echo "error: $1" >&2
    exit 2
}

# TorchServe writes: {"management": {"key": …}, "inference": {"key": …, …}, "API": …}, in any order.
server_token() {
    tr -d ' \n' <"$keys" 2>/dev/null | sed -n 's/.*"inference":{[^}]*"key":"\([A-Za-z0-9_=-]*\)".*/\1/p'
}

# Certificates and clients also change where a Secret is mounted.
inputs() {
    cat "$keys" "$record" "$tls/tls.crt" "$tls/tls.key" "$clients" 2>/dev/null | cksum
}

# A field of server.json, which ConvLens writes when all models answer: {"models": ["convlens", …], "version": "…", …}
recorded() {
    tr -d ' \n' <"$record" 2>/dev/null | sed -n "s/.*\"$1\":$2.*/\\1/p" | tr -d '"' | tr , ' '
}

# What is served, for / and /help and for KServe's protocols. Names are letters, digits, dots, dashes and underscores.
write_models() {
    models=$(printf %s "${PROXY_MODELS:-$(recorded models '\[\([^]]*\)\]')}" | tr -cd 'A-Za-z0-9._ -')
    version=$(recorded version '"\([^"]*\)"' | tr -cd 'A-Za-z0-9._+-')
    set -- ${models:-convlens}
    ready "$@" >"$folder/ready.conf"
    names=$(printf ', "%s"' "$@" | cut -c 3-)
    explorer=
    [ -z "${PROXY_SITE:-}" ] || explorer='<p><a href="/">The explorer</a> explains images in the browser.</p>'
    sed -e "s|@MODEL@|$1|g" -e "s|@MODELS@|$(printf '<li><code>%s</code></li>' "$@")|" -e "s|@EXPLORER@|$explorer|" \
        "$here/help.html" >"$folder/page/help.html"
    cp "$here/help.css" "$folder/page/help.css"
    cat >"$folder/page/help_models.json" <<END
{"models": [$names]}
END
    cat >"$folder/page/help_server.json" <<END
{"name": "convlens", "version": "$version", "extensions": ["binary_tensor_data"]}
END
    cat >"$folder/page/help.json" <<END
{"status": "alive", "name": "convlens", "version": "$version", "models": [$names],
 "paths": ["/predictions/NAME", "/explanations/NAME", "/explanations/NAME/1.0/METHOD", "/v1/models/NAME:predict",
           "/v1/models/NAME:explain", "/v2/models/NAME/infer", "/v2/models/NAME/explain", "/v2/health/ready", "/ping"]}
END
    chmod 644 "$folder"/page/*
}

# nginx asks one server for each location, and follows ten redirects within it: one location leads to the next.
ready() {
    number=0
    for entry in "$@"; do
        number=$((number + 1))
        next=@ready_$((number + 1))
        [ $number -lt $# ] && [ $number -lt 8 ] || next=@ready
        echo "location @ready_$number {"
        echo "    auth_request /entry_ready/$entry;"
        echo "    error_page 500 =503 @refused;"
        echo "    try_files /nothing $next;"
        echo "}"
        [ $next != @ready ] || return 0
    done
}

write_token() {
    token=$(server_token)
    [ -n "$token" ] || return 1
    (umask 077 && printf 'map "" $server_token { default "Bearer %s"; }\n' "$token" >"$folder/token.conf.new")
    mv "$folder/token.conf.new" "$folder/token.conf"
}

pause() {
    sleep 1 &
    wait $! || true # a signal ends the wait at once
}

listen() {
    if [ "$tls" = none ]; then
        echo "listen ${PROXY_LISTEN:-127.0.0.1:8443};"
    else
        echo "listen ${PROXY_LISTEN:-127.0.0.1:8443} ssl http2;"
        echo "ssl_certificate $tls/tls.crt;"
        echo "ssl_certificate_key $tls/tls.key;"
    fi
}

# The explorer beside the interface it asks. Files are open to everybody: the site's graphs hold the weights. The headers
# isolate the page, so that its threads may share memory, and keep it from asking anybody else.
site() {
    if [ -z "${PROXY_SITE:-}" ]; then
        echo 'location = / { rewrite ^ /help last; }'
        echo 'location / { return 404; }'
        return
    fi
    cat <<END
location / {
    if (\$request_method !~ ^(GET|HEAD)\$) { return 404; }
    limit_req zone=rate burst=200 nodelay;
    root "$PROXY_SITE";
    try_files \$uri \${uri}index.html =404;
    types {
        text/html              html;
        text/css               css;
        text/javascript        js mjs;
        application/wasm       wasm;
        application/json       json;
        image/jpeg             jpg;
        image/png              png;
        text/plain             txt;
    }
    default_type application/octet-stream;
    charset utf-8;
    add_header Cross-Origin-Opener-Policy   same-origin;
    add_header Cross-Origin-Embedder-Policy require-corp;
    add_header Cross-Origin-Resource-Policy same-origin;
    add_header X-Content-Type-Options       nosniff;
    add_header Referrer-Policy              no-referrer;
    add_header Cache-Control                no-cache;
    add_header Content-Security-Policy      "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob: data:; media-src 'self' blob:; connect-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'self'";
}
END
}

# Named one by one: a page of any other origin could spend the token of whoever opened it.
origins() {
    set -f # a * is no pattern of file names
    for origin in ${PROXY_ORIGINS:-}; do
        case $origin in
        *[!A-Za-z0-9:/._-]* | *[!:/]/*) ;;
        http://?* | https://?*)
            echo "\"$origin\" \$http_origin;"
            continue
            ;;
        esac
        fail "PROXY_ORIGINS: $origin should read like https://host or http://127.0.0.1:8000, without a path"
    done
    set +f
}

require_readable() {
    [ -r "$1" ] || fail "cannot read $1; docs/serving.md says what belongs there"
}

require_readable "$clients"
[ -z "${PROXY_SITE:-}" ] || require_readable "$PROXY_SITE/site.json"
[ "$tls" = none ] || { require_readable "$tls/tls.crt" && require_readable "$tls/tls.key"; }
# Others may enter: when started as root, nginx runs its workers as another user, who must reach the uploads in here.
mkdir -p "$folder/temp" "$folder/page"
chmod 711 "$folder" "$folder/page"
cp "$here/nginx.conf" "$folder/nginx.conf"
ln -sfn "$clients" "$folder/clients.conf"
listen >"$folder/listen.conf"
site >"$folder/site.conf"
origins >"$folder/origins.conf"
echo "listen ${PROXY_METRICS:-127.0.0.1:9102};" >"$folder/listen_metrics.conf"
cat >"$folder/addresses.conf" <<END
upstream rest { server ${PROXY_REST:-127.0.0.1:8080}; keepalive 16; }
upstream grpc { server ${PROXY_GRPC:-127.0.0.1:7070}; keepalive 16; }
upstream metrics { server ${PROXY_TORCHSERVE_METRICS:-127.0.0.1:8082}; }
END

stopping=
trap 'stopping=yes' TERM INT
until write_token; do
    [ -z "$stopping" ] || exit 0
    pause
done
write_models
seen=$(inputs)
nginx -p "$folder" -c "$folder/nginx.conf" -e stderr -g 'daemon off;' &
nginx=$!

while kill -0 "$nginx" 2>/dev/null; do
    if [ -n "$stopping" ]; then
        kill -QUIT "$nginx"
        wait "$nginx"
        exit 0
    fi
    now=$(inputs)
    if [ "$now" != "$seen" ] && write_token; then
        write_models
        seen=$now
        kill -HUP "$nginx"
    fi
    pause
done
fail "nginx ended by itself"
