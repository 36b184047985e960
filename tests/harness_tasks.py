"""Tasks of the evaluation harness of each kind, with data of their own."""

import json
import pathlib

TASKS = pathlib.Path(__file__).parent / "evaluation" / "tasks"
QUESTIONS = [
    ("What is a lighthouse?", ["a house", "a light at sea", "a fish"], 1),
    ("Who was king of Judah?", ["Saul", "Jehoiakim"], 1),
    ("What is a river?", ["water", "the sun and the moon", "a stone", "bread"], 0),
    ("Where is the sea?", ["In the west", "On a hill"], 0),
]
TEXTS = ["In the beginning God created the heaven and the earth.\n" * 3, "And he said.", "Ä ß\t€"]
PROMPTS = ["In the beginning", "And God said unto", "What is a lighthouse?"]


def write_tasks(folder):
    """Writes the tasks into a folder, which it returns."""
    data = {
        "choice": [dict(zip(("question", "choices", "answer"), x, strict=True)) for x in QUESTIONS],
        "rolling": [{"text": text} for text in TEXTS],
        "generation": [{"prompt": prompt, "answer": "light"} for prompt in PROMPTS],
    }
    for name, documents in data.items():
        lines = "".join(json.dumps(document) + "\n" for document in documents)
        (folder / f"{name}.jsonl").write_text(lines, encoding="utf-8")
        text = (TASKS / f"{name}.yaml").read_text(encoding="utf-8")
        (folder / f"{name}.yaml").write_text(text.replace("DATA", str(folder)), encoding="utf-8")
    return folder
