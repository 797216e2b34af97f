#!/usr/bin/env bash
# End-to-end example: train, serve, and translate with three clients that do not know Trivium.
#
#     examples/serve.sh
#
# It needs the extras `serve`, `engines` and `service-clients`. STEPS is the number of training steps. With the recipe's
# 4800 steps (about 5 minutes), the translation is correct.
set -euo pipefail
cd "$(dirname "$0")/.."

STEPS=${STEPS:-4800}
PORT=${PORT:-5000}
PYTHON=${PYTHON:-.venv/bin/python}
TRIVIUM="$PYTHON -m trivium_cli"
work=$(mktemp -d)
trap 'kill ${services:-} 2>/dev/null || true; rm -rf "$work"' EXIT

# 1. Train a translation model, and extract its decoder as a language model.
$TRIVIUM train numbers training.output_dir="$work/numbers" training.max_steps="$STEPS"
$TRIVIUM split "$work/numbers" "$work/parts"

# 2. Serve both; SIGTERM at the end finishes accepted requests.
$TRIVIUM serve "$work/numbers" --engine ctranslate2 --port "$PORT" &
services=$!
$TRIVIUM serve "$work/parts/decoder" --name numbers-decoder --port "$((PORT + 1))" &
services="$services $!"
for port in "$PORT" "$((PORT + 1))"; do
    until curl --silent --fail --output /dev/null "http://127.0.0.1:$port/health"; do
        kill -0 $services  # stop if a service has failed
        sleep 0.5
    done
done

# 3. Ask them with libretranslatepy, deep-translator and the OpenAI client.
"$PYTHON" - "$PORT" <<'END'
import sys

import openai
from deep_translator import LibreTranslator
from libretranslatepy import LibreTranslateAPI

port = int(sys.argv[1])
url = f"http://127.0.0.1:{port}/"
text = "half past seven"
print("libretranslatepy:", LibreTranslateAPI(url).translate(text, "en", "de"))
print("deep-translator:", LibreTranslator("en", "de", api_key="none is needed", custom_url=url).translate(text))
client = openai.OpenAI(base_url=f"http://127.0.0.1:{port + 1}/v1", api_key="none is needed")
for event in client.completions.create(model="numbers-decoder", prompt="halb", max_tokens=8, stream=True):
    print(event.choices[0].text, end="", flush=True)
print(" (openai)")
END
