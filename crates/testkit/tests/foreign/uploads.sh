#!/usr/bin/env bash
# Uploads a file in chunks and downloads parts of it, with nothing but curl; python3 only looks into the answers.
#
#     bash uploads.sh http://127.0.0.1:8000 TOKEN
#
# The script ends with an error at the first answer that is not as documented.
set -euo pipefail

base_url=$1
token=$2
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
file="$folder/Straße.bin"

# Two chunks and a bit, unless the server is configured otherwise.
head -c 2500000 /dev/urandom >"$file"
size=$(wc -c <"$file")
digest() { sha256sum "$1" | cut -d ' ' -f 1; }
sha256=$(digest "$file")

# call TOKEN CURL-ARGUMENT...: prints the answer, and keeps its status in $status, its headers, with names in lower case,
# in $headers, its body in a file and, unless it is a part of the file, in $body.
call() {
    # Where no body comes, curl leaves the file as it is.
    : >"$folder/body"
    status=$(curl -sS --max-time 20 -o "$folder/body" -D "$folder/headers" -w '%{http_code}' \
        -H "Authorization: Bearer $1" "${@:2}")
    headers=$(tr -d '\r' <"$folder/headers" | sed -E 's/^[^:]+:/\L&/')
    case "$status $headers" in
        2*"content-type: application/x-driftline"*) body="$(wc -c <"$folder/body") bytes" ;;
        *) body=$(cat "$folder/body") ;;
    esac
    echo "< $status $body"
}

# ask METHOD PATH [BODY]: sends a JSON document.
ask() {
    echo "> $1 $2 ${3:-}"
    call "$token" -X "$1" "$base_url$2" ${3:+-H 'Content-Type: application/json' -d "$3"}
}

# send INDEX: sends a chunk with its digest. The upload's own token suffices, so that it may outlive the user's.
send() {
    local chunk="$folder/chunk.$1"
    echo "> PUT chunk $1"
    call "$upload_token" -T "$chunk" "$base_url/api/v1/uploads/$upload/chunk/$1" -H "X-Chunk-SHA256: $(digest "$chunk")"
    expect_status 200
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
    [ "$status" = "$1" ] || {
        echo "not as documented: status $status instead of $1" >&2
        exit 1
    }
}

# expect_header LINE: the answer has this header.
expect_header() {
    grep -qxF "$1" <<<"$headers" || {
        echo "not as documented: no $1 in $headers" >&2
        exit 1
    }
}

# The server says how long the chunks are.
ask POST /api/v1/uploads/init '{"filename":"Straße.bin","content_type":"application/x-driftline","size":'"$size"'}'
expect_status 201
expect 'a["expires_at"] and a["total_chunks"] == -(-'"$size"' // a["chunk_size"]) and a["total_chunks"] >= 3'
upload=$(field 'a["upload_id"]')
upload_token=$(field 'a["upload_token"]')
chunks=$(field 'a["total_chunks"]')
last=$((chunks - 1))
split -b "$(field 'a["chunk_size"]')" -a 3 --numeric-suffixes=0 "$file" "$folder/part."
for index in $(seq 0 "$last"); do mv "$folder/part.$(printf '%03d' "$index")" "$folder/chunk.$index"; done
expect_header "location: /api/v1/uploads/$upload"

# The last chunk first, then the first one; what lies between is missing.
send "$last"
expect 'a == {"index": '"$last"', "received": 1, "total_chunks": '"$chunks"'}'
send 0
expect 'a["received"] == 2'
ask GET "/api/v1/uploads/$upload"
expect_status 200
expect 'a["state"] == "open" and a["received"] == 2 and a["missing"] == [[1, '"$((last - 1))"']]'
ask POST "/api/v1/uploads/$upload/finalize" '{"sha256":"'"$sha256"'"}'
expect_status 409
expect 'a["code"] == "UPLOAD_INCOMPLETE" and a["missing"] == [[1, '"$((last - 1))"']]'

# A chunk that was damaged on its way is not taken; one that comes twice counts once.
echo "> PUT chunk 1, damaged"
call "$upload_token" -T "$folder/chunk.1" "$base_url/api/v1/uploads/$upload/chunk/1" -H "X-Chunk-SHA256: $sha256"
expect_status 422
expect 'a["code"] == "DIGEST_MISMATCH"'
for index in 0 $(seq 1 "$((last - 1))"); do send "$index"; done
ask GET "/api/v1/uploads/$upload"
expect 'a["missing"] == [] and a["received"] == '"$chunks"' and a["bytes_received"] == a["size"] == '"$size"

# Now it becomes a file, once, however often it is asked for.
for _ in 1 2; do
    ask POST "/api/v1/uploads/$upload/finalize" '{"sha256":"'"$sha256"'"}'
    expect_status 200
    expect 'a["file_id"] == "'"$upload"'" and a["sha256"] == "'"$sha256"'" and a["size"] == '"$size"
    expect 'a["filename"] == "Straße.bin" and a["content_type"] == "application/x-driftline"'
done
url=$(field 'a["url"]')

# The whole file, and parts of it over the boundary of a chunk and at the end.
echo "> GET $url"
call "$token" "$base_url$url"
expect_status 200
cmp "$folder/body" "$file"
expect_header "etag: \"$sha256\""
expect_header "content-disposition: attachment; filename=\"Stra_e.bin\"; filename*=UTF-8''Stra%C3%9Fe.bin"
for range in 1000000-1099999 2400000- -100; do
    echo "> GET $url, bytes $range"
    call "$token" -r "$range" "$base_url$url"
    expect_status 206
    case "$range" in
        -*) from=$((size + range)) until=$size ;;
        *-) from=${range%-} until=$size ;;
        *) from=${range%-*} until=$((${range#*-} + 1)) ;;
    esac
    expect_header "content-range: bytes $from-$((until - 1))/$size"
    dd if="$file" iflag=skip_bytes,count_bytes skip="$from" count="$((until - from))" status=none | cmp "$folder/body" -
done
call "$token" -r "$size-" "$base_url$url"
expect_status 416
expect_header "content-range: bytes */$size"

# A download that broke off goes on, if the file is still the same; who has it is not sent it again.
head -c 700000 "$file" >"$folder/kept"
call "$token" -r 700000- -H "If-Range: \"$sha256\"" "$base_url$url"
expect_status 206
cat "$folder/body" >>"$folder/kept"
cmp "$folder/kept" "$file"
call "$token" -r 700000- -H 'If-Range: "another"' "$base_url$url"
expect_status 200
cmp "$folder/body" "$file"
call "$token" -H "If-None-Match: \"$sha256\"" "$base_url$url"
expect_status 304
[ ! -s "$folder/body" ] || { echo "not as documented: a body of $(wc -c <"$folder/body") bytes" >&2; exit 1; }

# The upload's own token opens no file, and without any nothing is shown.
call "$upload_token" "$base_url$url"
expect_status 401
call nonsense "$base_url/api/v1/uploads/$upload"
expect_status 401
ask DELETE "$url"
expect_status 204
ask GET "$url"
expect_status 404

echo "uploads.sh: all answers are as documented"
