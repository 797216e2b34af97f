// Translates in the browser: the model, the library and its WebAssembly are files next to this page.

import { env, pipeline } from "./library/transformers.min.js";

const here = (path) => new URL(path, document.baseURI).href;
env.allowRemoteModels = false;
env.allowLocalModels = true;
env.localModelPath = new URL("./", document.baseURI).pathname; // It does not find tokenizers at a full URL.
env.useWasmCache = false; // It would load the engine from a blob, which the page's policy forbids.
env.backends.onnx.wasm.wasmPaths = here("library/");
env.backends.onnx.wasm.numThreads = 1; // Threads need headers that a static host does not send.

const [form, button, text] = ["form", "button", "textarea"].map((name) => document.querySelector(name));
const [status, translation] = ["status", "translation"].map((id) => document.getElementById(id));

async function main() {
  const translate = await pipeline("translation", "model", { dtype: "q8", device: "wasm" });
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    status.textContent = "Translating ...";
    try {
      const lines = text.value.split("\n");
      const found = [];
      for (const line of lines) {
        found.push(line.trim() ? (await translate(line))[0].translation_text : "");
      }
      translation.textContent = found.join("\n");
      status.textContent = "Finished.";
    } catch (error) {
      status.textContent = `The text cannot be translated: ${error.message}`;
    } finally {
      button.disabled = false;
    }
  });
  button.disabled = false;
  status.textContent = "Ready.";
}

main().catch((error) => {
  status.textContent = `The model cannot be loaded: ${error.message}`;
});
