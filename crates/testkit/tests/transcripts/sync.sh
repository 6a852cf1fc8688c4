#!/usr/bin/env bash
# The same job over plain HTTP, with nothing but curl; python3 only looks into the answers.
#
#     bash sync.sh http://127.0.0.1:8000 TOKEN
#
# The token must not name a device, and its role must be allowed to set policies. The script ends with an error at the
# first answer that is not as documented.
set -euo pipefail

base_url=$1
token=$2
run=$(python3 -c 'import uuid; print(uuid.uuid4().hex[:8])')
note="n-$run"

# uuid: a fresh op_id. stamp: a clock stamp of now.
uuid() { python3 -c 'import uuid; print(uuid.uuid4())'; }
stamp() { python3 -c 'import time; print(f"{time.time_ns() // 1000000:012x}-0000")'; }

# ask METHOD PATH [BODY]: prints the request and the answer, and keeps the answer in $body and its status in $status.
ask() {
    echo "> $1 $2 ${3:-}"
    local answer
    answer=$(curl -sS -X "$1" "$base_url$2" -H "Authorization: Bearer $token" -w '\n%{http_code} %{content_type}' \
        ${3:+-H 'Content-Type: application/json' -d "$3"})
    body=${answer%$'\n'*}
    status=${answer##*$'\n'}
    echo "< $status $body"
}

# expect WHAT: evaluates a Python expression over the answer `a`; false ends the script.
expect() {
    python3 -c 'import json, sys; a = json.loads(sys.argv[2]); sys.exit(0 if eval(sys.argv[1]) else 1)' "$1" "$body" || {
        echo "not as documented: $1" >&2
        exit 1
    }
}

# field WHAT: prints a part of the answer.
field() { python3 -c 'import json, sys; a = json.loads(sys.argv[2]); print(eval(sys.argv[1]))' "$1" "$body"; }

expect_status() {
    [ "${status%% *}" = "$1" ] || {
        echo "not as documented: status $status instead of $1" >&2
        exit 1
    }
}

# The tenant decides how conflicts of the kind `note` end: the server's value stays, field by field.
ask PUT /api/v1/policies/note '{"strategy":"server_wins","granularity":"field"}'
expect_status 200
ask GET /api/v1/policies/note
expect_status 200
expect 'a["strategy"] == "server_wins" and a["granularity"] == "field" and a["version"] >= 1'

# Phone A makes a note. Push and pull are one request; without a cursor the pull is a first sync.
ask POST "/api/v1/sync?device_id=a-$run" '{"batch_seq":1,"data_types":["note"],"batch":[{"op_id":"'"$(uuid)"'","n":1,"kind":"note","id":"'"$note"'","op":"create","fields":{"title":"Roof","state":"open"},"hlc":"'"$(stamp)"'"}]}'
expect_status 200
expect 'a["ack"]["status"] == "ok" and a["ack"]["results"][0]["code"] == "applied"'
expect 'a["data"]["has_more"] in (True, False) and isinstance(a["data"]["cursor"], str)'
base=$(field 'a["ack"]["results"][0]["version"]')

# Phone B pulls page after page until it is caught up, and finds the note.
cursor=
seen=no
while true; do
    ask GET "/api/v1/changes?device_id=b-$run&data_types=note&limit=500${cursor:+&cursor=$cursor}"
    expect_status 200
    if [ "$(field 'any(c["id"] == "'"$note"'" and c["change"] == "put" for c in a["changes"])')" = True ]; then seen=yes; fi
    cursor=$(field 'a["cursor"]')
    if [ "$(field 'a["has_more"]')" = False ]; then break; fi
done
[ "$seen" = yes ] || { echo "not as documented: the note was not pulled" >&2; exit 1; }

# B closes it. A, which still holds the old version, wants to hold it: a conflict, the server's value stays, and the
# answer brings the record as it is.
ask POST "/api/v1/sync?device_id=b-$run" '{"batch_seq":1,"data_types":["note"],"cursor":"'"$cursor"'","batch":[{"op_id":"'"$(uuid)"'","n":1,"kind":"note","id":"'"$note"'","op":"patch","base_version":'"$base"',"fields":{"state":"closed"},"hlc":"'"$(stamp)"'"}]}'
expect_status 200
expect 'a["ack"]["results"][0]["code"] == "applied" and a["ack"]["results"][0]["version"] > '"$base"
version=$(field 'a["ack"]["results"][0]["version"]')
held='{"batch_seq":2,"data_types":["note"],"batch":[{"op_id":"'"$(uuid)"'","n":2,"kind":"note","id":"'"$note"'","op":"patch","base_version":'"$base"',"fields":{"state":"held"},"hlc":"'"$(stamp)"'"}]}'
ask POST "/api/v1/sync?device_id=a-$run" "$held"
expect_status 200
expect 'a["ack"]["conflicts"] == 1 and a["ack"]["results"][0]["code"] == "superseded"'
expect 'a["ack"]["results"][0]["winners"] == {"state": "server"}'
expect 'a["ack"]["results"][0]["record"]["fields"] == {"title": "Roof", "state": "closed"}'

# The answer got lost and A sends the same again: the same result, marked as a duplicate.
ask POST "/api/v1/sync?device_id=a-$run" "${held/'"batch_seq":2'/'"batch_seq":3'}"
expect_status 200
expect 'a["ack"]["results"][0]["code"] == "superseded" and a["ack"]["results"][0]["duplicate"] is True'

# What the server holds, and why.
ask GET "/api/v1/records/note/$note"
expect_status 200
expect 'a["id"] == "'"$note"'" and a["version"] >= '"$version"' and a["fields"] == {"title": "Roof", "state": "closed"}'
ask GET /api/v1/records/note
expect_status 200
expect 'isinstance(a["items"], list) and "next_cursor" in a'
ask GET "/api/v1/records/note/$note/explain"
expect_status 200
expect 'a["fields"]["state"]["value"] == "closed" and a["fields"]["state"]["device_id"] == "b-'"$run"'"'
expect '[lost["value"] for lost in a["fields"]["state"]["lost"]] == ["held"]'

# Errors are problem documents with a stable code.
ask GET "/api/v1/records/note/missing-$run"
expect_status 404
[ "${status#* }" = "application/problem+json" ] || { echo "not as documented: $status" >&2; exit 1; }
expect 'a["code"] == "NOT_FOUND" and a["status"] == 404 and a["title"] and a["correlation_id"]'
ask POST "/api/v1/sync?device_id=a-$run" '{"batch":7}'
expect_status 422
expect 'a["code"] == "VALIDATION_ERROR" and a["errors"][0]["pointer"] == "/batch"'
token=nonsense
ask GET /api/v1/records/note
expect_status 401
expect 'a["code"] == "UNAUTHORIZED"'

echo "sync.sh: all answers are as documented"
