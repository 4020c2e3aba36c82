#!/usr/bin/env bash
# A walk through the router with curl: register a worker, look at the pool, make an image, take a
# worker out and put it back. Try it against the demo (`python3 dist/router.pyz demo`).
#
#   ROUTER=http://localhost:30081 examples/curl.sh
#
# WORKER is the worker to register; where it is not given, one that is registered already.
set -euo pipefail

ROUTER=${ROUTER:-http://localhost:30081}
HEADERS=$(mktemp)
trap 'rm -f "$HEADERS"' EXIT

# Asks the router; an error status ends the script. --noproxy: a router is seldom behind a proxy.
ask() { curl --silent --show-error --fail-with-body --noproxy '*' "$@"; }

# Prints what a Python expression makes of the JSON on standard input, which it knows as `it`.
pick() {
    python3 -c "import json, sys; it = json.load(sys.stdin); 'error' in it and sys.exit(it['error']); print($1)"
}

echo "-- is the router alive?"
ask "$ROUTER/live"

echo "-- register a worker (again and again does no harm)"
WORKER=${WORKER:-$(ask "$ROUTER/workers" | pick 'it["workers"][0]["url"]')}
ask -X POST "$ROUTER/workers?url=$WORKER" | pick 'it["message"]'

echo "-- the pool"
ask "$ROUTER/workers" | pick '"\n".join("{url} routable={routable} {models}".format(**w) for w in it["workers"])'

echo "-- an image, saved as kite.png"
ask "$ROUTER/v1/images/generations" \
    -H 'Content-Type: application/json' \
    -H 'X-Request-Id: kite-1' \
    -d '{"prompt": "a red kite over the sea", "size": "512x512", "seed": 7, "response_format": "b64_json"}' \
    --dump-header "$HEADERS" | pick 'it["data"][0]["b64_json"]' | base64 --decode > kite.png
grep -i '^x-' "$HEADERS" # which request it was, and which worker made it

echo "-- no new work for the worker, then work again"
ID=$(ask "$ROUTER/workers/$WORKER" | pick 'it["worker"]["worker_id"]')
ask -X PUT "$ROUTER/workers/$ID" -d '{"draining": true}' | pick 'it["worker"]["reasons"]'
ask -X PUT "$ROUTER/workers/$ID" -d '{"draining": false}' | pick 'it["worker"]["reasons"]'

echo "-- would a request be served now?"
ask "$ROUTER/health"
