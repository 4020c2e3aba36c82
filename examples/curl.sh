#!/usr/bin/env bash
# A walk through the router with curl: register a worker, look at the pool, make an image and a video,
# take a worker out and put it back, refit, sleep, wake. Try it against the demo
# (`python3 dist/router.pyz demo`).
#
#   ROUTER=http://localhost:30081 examples/curl.sh
#
# WORKER is the worker to register; where it is not given, one that is registered already. WEIGHTS is
# where to load weights from; where it is not given, those of the model once more. ROUTER_ADMIN_KEY is
# the admin key, if the router wants one.
set -euo pipefail

ROUTER=${ROUTER:-http://localhost:30081}
HEADERS=$(mktemp)
trap 'rm -f "$HEADERS"' EXIT

# Asks the router; an error status ends the script. --noproxy: a router is seldom behind a proxy.
ask() {
    curl --silent --show-error --fail-with-body --noproxy '*' \
        -H "X-API-Key: ${ROUTER_ADMIN_KEY:-none}" "$@"
}

# Prints what a Python expression makes of the JSON on standard input, which it knows as `it`.
pick() {
    python3 -c "import json, sys; it = json.load(sys.stdin); it.get('error') and sys.exit(str(it['error'])); print($1)"
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
    -d '{"prompt": "a red kite over the sea", "size": "512x512", "seed": 7, "response_format": "b64_json", "output_format": "png"}' \
    --dump-header "$HEADERS" | pick 'it["data"][0]["b64_json"]' | base64 --decode > kite.png
grep -i '^x-' "$HEADERS" # which request it was, and which worker made it

echo "-- no new work for the worker, then work again"
ID=$(ask "$ROUTER/workers/$WORKER" | pick 'it["worker"]["worker_id"]')
ask -X PUT "$ROUTER/workers/$ID" -d '{"draining": true}' | pick 'it["worker"]["reasons"]'
ask -X PUT "$ROUTER/workers/$ID" -d '{"draining": false}' | pick 'it["worker"]["reasons"]'

echo "-- a video: a job that is asked for its status until it is over, saved as kite.mp4"
JOB=$(ask "$ROUTER/v1/videos" \
    -H 'Content-Type: application/json' \
    -d '{"prompt": "a red kite over the sea", "size": "256x256", "seconds": 1}' | pick 'it["id"]')
until STATUS=$(ask "$ROUTER/v1/videos/$JOB" | pick 'it["status"]') &&
    [[ $STATUS == completed || $STATUS == failed ]]; do
    sleep 0.2
done
echo "$STATUS"
ask "$ROUTER/v1/videos/$JOB/content" --output kite.mp4
ask "$ROUTER/v1/videos?limit=1" | pick 'it["data"][0]["id"] == "'"$JOB"'"'
ask -X DELETE "$ROUTER/v1/videos/$JOB" | pick 'it["status"]'

echo "-- other weights on all workers of the model, and whether they have the same then"
MODEL=$(ask "$ROUTER/v1/models" | pick 'it["data"][0]["id"]')
ask "$ROUTER/update_weights_from_disk?model=$MODEL" \
    -H 'Content-Type: application/json' \
    -d "{\"model_path\": \"${WEIGHTS:-$MODEL}\"}" | pick '[row["status_code"] for row in it["results"]]'
ask "$ROUTER/get_weights_checksum?model=$MODEL" \
    -H 'Content-Type: application/json' -d '{}' | pick '"consistent:", it["consistent"]'

echo "-- they give their GPU memory back, and take it again"
ask -X POST "$ROUTER/release_memory_occupation?model=$MODEL" | pick '"all asleep:", it["success"]'
ask -X POST "$ROUTER/release_memory_occupation?model=$MODEL" | pick 'it["message"]'
ask -X POST "$ROUTER/resume_memory_occupation?model=$MODEL" | pick '"all awake:", it["success"]'

echo "-- would a request be served now?"
ask "$ROUTER/health"
