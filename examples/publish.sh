#!/usr/bin/env bash
# From nothing to a model that somebody else uses: train, measure, publish, and load it where Trivium is not installed.
#
#     examples/publish.sh
#
# The Hub of this example is a small server on this machine (tests/hub_server.py), so that it needs no account. For the
# real one leave out the first step, log in with `hf auth login`, and write your own name
# in place of "someone".
#
# STEPS is how long to train; with the recipe's own 4800 steps (about 5 minutes) the answer is right.
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS=${STEPS:-4800}
PYTHON=${PYTHON:-.venv/bin/python}
BIN=$(dirname "$PYTHON")
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

# 1. A Hub, with the user "someone". Its first line says what its clients need to know.
"$PYTHON" tests/hub_server.py --port 0 > "$work/hub" &
server=$!
until grep -q HF_ENDPOINT "$work/hub"; do sleep 0.2; done
export HF_HUB_OFFLINE=0 $(cat "$work/hub")

# 2. A model, its scores, and its way to the Hub: `push` loads it as others would, writes its card, makes one commit.
"$BIN/trivium" train numbers training.output_dir="$work/numbers" training.max_steps="$STEPS"
"$BIN/trivium" evaluate "$work/numbers"
"$BIN/trivium" push "$work/numbers" someone/numbers --private

# 3. Somebody else: an environment of their own, with torch and transformers, without Trivium.
"$PYTHON" -m venv "$work/theirs"
"$work/theirs/bin/pip" install --quiet --constraint constraints.txt torch transformers
cd "$work"  # where no folder is called trivium
HF_HOME="$work/home" "$work/theirs/bin/python" - <<'END'
from importlib.util import find_spec

from transformers import pipeline

assert find_spec("trivium") is None
translate = pipeline("translation", model="someone/numbers", trust_remote_code=True)
print("half past seven:", translate("half past seven")[0]["translation_text"])
END
