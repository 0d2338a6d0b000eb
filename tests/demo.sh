#!/bin/bash
# `make demo`: quern's main job on real data. A private Redis and a worker; a digit classifier trained through the queue on two
# thirds of the data and published into the worker's store; single digits pushed with redis-cli; a file of 179,700 rows scored as one
# bulk job, while the worker that began it is killed with -9; the accuracy on the rows that the model has never seen. Cleans up
# after itself, needs no port and no rights.
set -u
quern=$(realpath "$1")
cd "$(dirname "$0")/.."
example=configs/examples/digits
work=$(mktemp -d /tmp/quern-demo-XXXXXX)
pids=()
finish() {
    for p in "${pids[@]}"; do kill -9 "$p" 2>/dev/null; done
    wait 2>/dev/null
    rm -rf "$work"
}
trap finish EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }
[ -t 1 ] && [ -z "${NO_COLOR:-}" ] || say() { printf '\n%s\n' "$*"; }

export QUERN_REDIS=unix:$work/redis.sock
cli() { redis-cli -s "$work/redis.sock" "$@"; }

say "1. a private Redis, and a worker with two lanes on an empty model store"
redis-server --port 0 --unixsocket "$work/redis.sock" --save '' --appendonly no --dir "$work" >"$work/redis.log" &
pids+=($!)
for _ in $(seq 100); do [ "$(cli ping 2>/dev/null)" = PONG ] && break; sleep 0.05; done
mkdir "$work/store"
"$quern" worker --lanes 2 --models "$work/store" --files "$work" --name first 2>"$work/first.log" &
first=$!
pids+=($first)

say "2. a training job: $example/train.json on the rows that are not held out (every third one is)"
zcat $example/digits.csv.gz >"$work/digits.csv"
awk 'NR % 3 != 1' "$work/digits.csv" >"$work/train.csv"
awk 'NR % 3 == 1' "$work/digits.csv" >"$work/test.csv"
sed -e 's/"digits.csv.gz"/"train.csv"/' -e 's|"test_split": 0.2|"test": {"x": "test.csv", "target": 64, "header": false}|' $example/train.json >"$work/spec.json"
"$quern" train "$work/spec.json" >"$work/epochs.txt" || { tail -n 5 "$work"/first.log; exit 1; }
grep -E '^epoch (1|10|20|30|40):' "$work/epochs.txt"
tail -n 2 "$work/epochs.txt"
"$quern" model show digits --models "$work/store"

say "3. single jobs, pushed with redis-cli"
for row in 1 4 7; do
    line=$(sed -n "${row}p" "$work/digits.csv")
    cli LPUSH 'quern:{default}:in' "{\"id\":\"digit-$row\",\"op\":\"infer\",\"model\":\"digits\",\"wait\":true,\"input\":[${line%,*}]}" >/dev/null
    cli BLPOP "quern:{default}:n:digit-$row" 20 >/dev/null
    printf 'row %s, written by hand as %s: ' "$row" "${line##*,}"
    cli GET "quern:{default}:r:digit-$row" | grep -o '"top":\[{[^}]*}'
done

say "4. one bulk job over 179,700 rows; the worker that begins it is killed with -9 half-way, a second one finishes"
for _ in $(seq 100); do cut -d, -f1-64 "$work/digits.csv"; done >"$work/rows.csv"
id=$("$quern" submit "{\"op\":\"bulk\",\"model\":\"digits\",\"input_ref\":\"file:$work/rows.csv\",\"output_ref\":\"file:$work/scores.csv\",\"params\":{\"header\":false}}")
while :; do
    done_rows=$("$quern" --json status "$id" | grep -o '"done":[0-9]*' | head -1 | cut -d: -f2)
    [ "${done_rows:-0}" -ge 40000 ] && break
    kill -0 $first 2>/dev/null || break
    sleep 0.02
done
{ kill -9 $first; wait $first; } 2>/dev/null
echo "kill -9 after ${done_rows:-0} rows"
"$quern" worker --lanes 2 --models "$work/store" --files "$work" --name second 2>"$work/second.log" &
pids+=($!)
"$quern" wait "$id" >"$work/envelope.json" || { cat "$work/envelope.json" "$work"/*.log; exit 1; }
grep -o '"state":"[a-z]*"' "$work/envelope.json"

say "5. the answer"
/usr/bin/env awk -F, -v digits="$work/digits.csv" '
    BEGIN { while ((getline line < digits) > 0) { n = split(line, f, ","); truth[count++] = f[n] } }
    FNR == 1 { for (i = 1; i <= NF; i++) if ($i == "index") column = i; next }
    { rows++; row = (rows - 1) % count; if (row % 3 == 0) { held++; right += ($column == truth[row]) } }
    END {
        printf "%d rows scored of %d; accuracy on the %d held-out rows: %.2f %%\n", rows, count * 100, held / 100, 100 * right / held
        exit !(rows == count * 100 && right / held >= 0.985)
    }' "$work/scores.csv" || { head -3 "$work/scores.csv"; tail -n 5 "$work"/first.log "$work"/second.log; exit 1; }
