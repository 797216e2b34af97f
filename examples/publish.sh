#!/usr/bin/env bash
# End-to-end example: train, evaluate, publish, and load the model where Trivium is not installed.
#
#     examples/publish.sh
#
# This example uses a local Hub server (tests/helpers/hub_server.py), so it needs no account. For the real Hub, skip the
# first step, log in with `hf auth login`, and replace "someone" with your user name.
#
# STEPS is the number of training steps. With the recipe's 4800 steps (about 5 minutes), the translation is correct.
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS=${STEPS:-4800}
PYTHON=${PYTHON:-.venv/bin/python}
BIN=$(dirname "$PYTHON")
work=$(mktemp -d)
trap 'kill "${server:-}" 2>/dev/null || true; rm -rf "$work"' EXIT

# 1. Start a Hub server with the user "someone". Its first line of output is the environment for its clients.
"$PYTHON" tests/helpers/hub_server.py --port 0 > "$work/hub" &
server=$!
until grep -q HF_ENDPOINT "$work/hub"; do sleep 0.2; done
export HF_HUB_OFFLINE=0 $(cat "$work/hub")

# 2. Train and evaluate a model, and publish it: `push` checks that it loads without Trivium, writes its model card,
#    and uploads it in one commit.
"$BIN/trivium" train numbers training.output_dir="$work/numbers" training.max_steps="$STEPS"
"$BIN/trivium" evaluate "$work/numbers"
"$BIN/trivium" push "$work/numbers" someone/numbers --private

# 3. Load the model in a new environment, with torch and transformers but without Trivium.
"$PYTHON" -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet --constraint constraints.txt torch transformers
cd "$work"  # a folder without a trivium subfolder
HF_HOME="$work/home" "$work/venv/bin/python" - <<'END'
from importlib.util import find_spec

from transformers import pipeline

assert find_spec("trivium") is None
translate = pipeline("translation", model="someone/numbers", trust_remote_code=True)
print("half past seven:", translate("half past seven")[0]["translation_text"])
END
