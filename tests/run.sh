# Run every test: sh tests/run.sh PYTHON [pytest's options]. Ends with each process' closing lines; fails if one of them does.
python=$1
shift
log=$(mktemp)
trap 'rm -f "$log"' EXIT
"$python" -m pytest tests --ignore=tests/ray --ignore=tests/cluster "$@" >"$log" 2>&1 &
plain=$!
failed=0
"$python" -m pytest tests/ray "$@" || failed=1
"$python" -m pytest tests/cluster "$@" || failed=1
wait $plain || failed=1
cat "$log"
exit $failed
