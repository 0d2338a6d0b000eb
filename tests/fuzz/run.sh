#!/bin/bash
# Runs libFuzzer targets one after the other on copies of their corpora. usage: run.sh FOLDER SECONDS [NAME…]
# A finding is written to build/fuzz/findings/ and makes it fail.
set -u
folder=$1 seconds=$2
shift 2
findings=build/fuzz/findings
mkdir -p "$findings"
rc=0
for binary in "$folder"/fuzz_*; do
    [ -x "$binary" ] && [[ $binary != *.* ]] || continue
    name=$(basename "$binary")
    name=${name#fuzz_}
    [ $# -eq 0 ] || [[ " $* " == *" $name "* ]] || continue
    work=$(mktemp -d)
    echo "fuzz $name for $seconds s"
    if ! "$binary" -max_total_time="$seconds" -timeout=10 -rss_limit_mb=4096 -max_len=65536 -print_final_stats=1 \
        -artifact_prefix="$findings/$name-" "$work" "tests/fuzz/corpus/$name" >"$findings/$name.log" 2>&1; then
        rc=1
        echo "fuzz $name: FINDING, see $findings/$name.log"
    fi
    grep -E 'stat::number_of_executed_units|stat::new_units_added' "$findings/$name.log"
    rm -rf "$work"
done
exit $rc
