#!/bin/sh
# A service written as a shell script that calls another: call_curl.sh HTTP_URL HTTPS_URL CA.
#
# It knows of no proxy: curl reads the environment. Prints the facts that the test judges.
set -eu
service=$1 outside=$2 authority=$3
folder=$(mktemp -d)
trap 'rm -r "$folder"' EXIT

call() { curl --silent --show-error --fail --max-time 30 "$@"; }

head -c 10000000 /dev/zero | tr '\0' x > "$folder/body"
caller=$(call "$service/hello")
plain=$(call "$service/bytes?n=10000000" | wc -c)
chunked=$(call "$service/bytes?n=10000000&chunked" | wc -c)
whole=$(call --data-binary "@$folder/body" "$service")
# Length unknown: curl sends chunks.
pieces=$(call --header 'Transfer-Encoding: chunked' --data-binary @- "$service" < "$folder/body")
connections=$(call --output /dev/null --write-out '%{num_connects}\n' "$service/hello?[1-200]" |
    awk '{ made += $1 } END { print made }')
seen=$(call --cacert "$authority" "$outside")

printf '%s' "$caller" | sed 's/}$//'
printf ', "down": [%s, %s], "up": [%s, %s]' "$plain" "$chunked" "$whole" "$pieces"
printf ', "connections": %s, "outside": "%s"}\n' "$connections" "$seen"
