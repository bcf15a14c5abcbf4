#!/usr/bin/env bash
# phase.sh NAME [ARGUMENT]: one phase of phases.py, which README.md lists.
set -euo pipefail
. "$(dirname "$0")/env.sh"
exec python3 -B "$here/phases.py" "$@"
