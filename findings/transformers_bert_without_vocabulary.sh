#!/usr/bin/env bash
# Guess: AutoTokenizer.from_pretrained of a folder with a BERT config.json and no vocab.txt or tokenizer.json raises an error.
# Seen (transformers 5.24.0, tokenizers 0.23.3): it returns a tokenizer of five entries, the special tokens, although config.json says
# 30,522. Every word becomes [UNK], so all texts of as many words have the same ids, and nothing is said.
# Matters for: whoever copies a model folder by hand or with a filter for weights: a CLIP then trains and answers on [UNK] alone.
# Exit 0: it is still so. Exit 1: it has changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet 'transformers==5.24.0' 'tokenizers==0.23.3'
HF_HUB_OFFLINE=1 HF_HOME="$folder/home" "$folder/venv/bin/python" - "$folder/bert" <<'PYTHON'
import json
import pathlib
import sys

from transformers import AutoTokenizer

folder = pathlib.Path(sys.argv[1])
folder.mkdir()
(folder / "config.json").write_text(json.dumps({"model_type": "bert", "vocab_size": 30522}))
try:
    tokenizer = AutoTokenizer.from_pretrained(folder)
except Exception as error:
    print("refused:", type(error).__name__, error)
    sys.exit(1)
liver, lung = (tokenizer(text).input_ids for text in ("a section of liver", "x rays show lungs"))
print("entries", len(tokenizer), "ids", liver, lung)
sys.exit(0 if len(tokenizer) == 5 and liver == lung else 1)
PYTHON
