#!/usr/bin/env bash
# Run a part of the tests: `tests/part.sh PART`. What failed is run once more by itself: if it passes then, it hangs on
# the machine's speed or on what ran beside it, and is named as such.
set -uo pipefail
cd "$(dirname "$0")/.."
pytest=(.venv/bin/pytest --part "$1" -o "cache_dir=.venv/cache-$1")
"${pytest[@]}" --cache-clear && exit
status=$?
[ "$status" = 1 ] || exit "$status"
echo "Once more, what failed, by itself; what passes now is unsteady:"
"${pytest[@]}" --last-failed -v
