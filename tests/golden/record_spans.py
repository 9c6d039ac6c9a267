"""Records the vectors of spans of long texts as torch computes them, for the tests to compare with.

Run it in an environment with torch and transformers, after ``record_models.py``::

    python tests/golden/record_spans.py

It writes ``spans.json``: for each model the texts, their spans, and a vector for each span. It goes token by
token, in the plainest way: each token's vector is that of the window in which it has more tokens on its
narrower side, of two equal ones the later.
"""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

HERE = Path(__file__).parent
MODELS = {"bert": (40, ""), "xlm-roberta": (24, "passage of text: "), "mpnet": (150, "")}
SENTENCE = "The printer on the second floor is on fire. "
TEXTS = [
    SENTENCE,
    "How do I reset my password? Naïve café, 你好世界! " + SENTENCE * 3,
    "  Привет мир\n\n"
    + " ".join(f"{number} one two three, {'four' * (number % 4)};" for number in range(40))
    + " ",
]


def token_vectors(model: Any, tokenizer: Any, prompt: str, limit: int, text: str) -> tuple[Any, Any]:
    """The place of each token's last character in the text and its vector; special tokens are at the ends."""
    whole = tokenizer(prompt + text, return_offsets_mapping=True, truncation=False)
    ids = whole["input_ids"]
    last = [end - 1 - len(prompt) for _, end in whole["offset_mapping"]]
    body = [index for index in range(1, len(ids) - 1) if last[index] >= 0]
    before, after = ids[: body[0]], ids[body[-1] + 1 :]
    room = limit - len(before) - len(after)
    count = len(body)
    last_window = max(-(-(count - room) // (room - room // 4)), 0)
    starts = [i * (count - room) // last_window for i in range(last_window + 1)] if last_window else [0]
    best: dict[int, tuple[int, Any]] = {}
    for start in starts:
        end = min(start + room, count)
        read = before + [ids[index] for index in body[start:end]] + after
        with torch.no_grad():
            states = model(
                input_ids=torch.tensor([read]), attention_mask=torch.ones(1, len(read), dtype=torch.int64)
            ).last_hidden_state[0]
        for place, state in enumerate(states.double().numpy()):
            token = place + start
            if (place < len(before) and start) or (place >= len(read) - len(after) and end < count):
                continue  # special tokens count in the first and the last window
            left = place - len(before) if start else count
            right = len(read) - len(after) - 1 - place if end < count else count
            narrow = min(left, right)
            if token not in best or narrow >= best[token][0]:
                best[token] = narrow, state
    places = [0] * len(before) + [last[index] for index in body] + [len(text) - 1] * len(after)
    return np.array(places), np.stack([best[token][1] for token in range(len(places))])


def main() -> None:
    """Record all."""
    recorded: dict[str, Any] = {"texts": TEXTS, "spans": [], "vectors": {name: [] for name in MODELS}}
    for text in TEXTS:
        cuts = sorted({0, len(text), *(len(text) * part // 7 for part in range(1, 7))})
        recorded["spans"].append([*pairwise(cuts), (0, len(text)), (3, 24), (len(text) - 30, len(text) - 4)])
    for name, (limit, prompt) in MODELS.items():
        folder = HERE / "models" / name
        model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
        for text, spans in zip(TEXTS, recorded["spans"], strict=True):
            places, states = token_vectors(model, tokenizer, prompt, limit, text)
            rows = []
            for start, end in spans:
                vector = states[(start <= places) & (places < end)].mean(axis=0)
                rows.append([round(float(each), 7) for each in vector / np.linalg.norm(vector)])
            recorded["vectors"][name].append(rows)
    (HERE / "spans.json").write_text(json.dumps(recorded) + "\n")


if __name__ == "__main__":
    main()
